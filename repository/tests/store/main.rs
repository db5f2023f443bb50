//! The storage contract on every back end, and what only one of them can get wrong.

#![expect(clippy::unwrap_used, reason = "tests")]

mod local;

use repository::Store;
use repository::testing::contract;

#[tokio::test]
async fn contract_in_memory() {
    contract(&Store::in_memory()).await;
}
