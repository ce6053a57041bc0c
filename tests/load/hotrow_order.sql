-- What a user would write, with the order that a sale is for.
\set customer random(1, 1000000)
BEGIN;
UPDATE stock SET n = n - 1 WHERE id = 1 AND n > 0;
INSERT INTO orders (stock_id, customer_id) VALUES (1, :customer);
COMMIT;
