-- What a user would write: the same rows as an order of the shop, in one transaction.
\set customer random(1, 1000000)
\set order random(1, 9000000000000000000)
BEGIN;
UPDATE goods SET available = available - 1 WHERE id = 1 AND available >= 1;
INSERT INTO goods_ledger (id, goods_id, reference_id, kind, quantity, created_at) VALUES (:order, 1, :order, 'sale', -1, 0);
INSERT INTO orders (id, user_id, kind, state, version, items, address, goods_amount_minor, shipping_fee_minor,
  order_amount_minor, coupon_deduction_minor, balance_paid_minor, payable_minor, currency, due_at, created_at, updated_at)
VALUES (:order, :customer, 'shop', 'awaiting_payment', 2, '[{"goods_id":"1","name":"Mooncakes","quantity":1,"unit_price_minor":20000}]',
  '{"consignee":"Alice","phone":"123","line":"1 Rabbit Hole"}', 20000, 0, 20000, 0, 0, 20000, 'CNY', 0, 0, 0);
INSERT INTO order_event (order_id, version, event_type, cause, data, created_at) VALUES (:order, 2, 'created', 'creation', '{}', 0);
INSERT INTO outbox (id, events, event_count, types, created_at, attempts)
VALUES (:order, '[{"type":"order.created.v1","order_id":"1"}]', 1, 'order.created.v1', 0, 0);
COMMIT;
