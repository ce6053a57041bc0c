//! The page on which a customer pays in the sandbox, well, badly, late or twice. Plain HTML: no script, no style.

use super::PaymentOrder;
use super::sandbox::PayChoice;

/// What the page is to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// What the customer may choose.
    Choices,
    /// What was chosen, and told to the shop.
    Done(PayChoice),
    /// It was paid before.
    Paid,
    /// Nothing can be paid any more.
    TooLate,
}

/// The page for `order`.
pub fn page(order: &PaymentOrder, shown: Shown) -> String {
    let PaymentOrder { payment_id, amount_minor, currency, .. } = order;
    let amount = currency.amount(*amount_minor);
    let description = escaped(&order.description);
    let status = |text| format!("<p role=\"status\">{text}</p>");
    let rest = match shown {
        Shown::Choices => form(),
        Shown::Done(choice) => status(said(choice)),
        Shown::Paid => status("It is paid."),
        Shown::TooLate => status("Not paid. It is too late."),
    };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Sandbox payment {payment_id}</title></head>\n<body><main><h1>Sandbox</h1>\
         <p>No money moves here.</p>\n<dl><dt>For</dt><dd>{description}</dd>\
         <dt>Amount</dt><dd>{amount}</dd>\
         <dt>Payment</dt><dd>{payment_id}</dd></dl>\n{rest}\n</main></body></html>\n"
    )
}

/// What a customer may choose; sent back to the page's own address as `choice`.
fn form() -> String {
    let button = |choice: &PayChoice| {
        let label = label(*choice);
        format!("<p><button name=\"choice\" value=\"{choice}\">{label}</button></p>\n")
    };
    let buttons: String = PayChoice::ALL.iter().map(button).collect();
    format!("<form method=\"post\">\n{buttons}</form>")
}

fn label(choice: PayChoice) -> &'static str {
    match choice {
        PayChoice::Succeed => "Pay",
        PayChoice::Fail => "Fail to pay",
        PayChoice::Late => "Pay, but after the payment was due",
        PayChoice::Twice => "Pay, and let the shop be told twice",
    }
}

fn said(choice: PayChoice) -> &'static str {
    match choice {
        PayChoice::Succeed => "Paid. The shop has been told.",
        PayChoice::Fail => "Not paid. The shop has been told.",
        PayChoice::Late => "Paid. The shop will be told after the payment was due.",
        PayChoice::Twice => "Paid. The shop has been told twice.",
    }
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}
