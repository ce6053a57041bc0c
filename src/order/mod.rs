//! What was sold, until it ends well: created, paid, cancelled, shipped, refunded.
//!
//! [`machine`] decides, purely; [`store`] is the one function through which every change of an order goes, for many
//! orders in one transaction, whoever asks: the API, a payment, the deadline, a repair. Rows are locked and versions
//! fenced, so two nodes never both win. [`saga`] makes an order of the shop, step by step; a flash sale's order is one row
//! of the batch that took its token. What an order held goes back by its events, each module undoing what its own rows say.

pub mod events;
pub mod machine;
pub mod model;
