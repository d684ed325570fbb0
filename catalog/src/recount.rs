//! Changes of the catalog that may lie before usage that is counted already (rule B6): a version may start in the past, and
//! events may lie ahead of the present, or have been judged by a node that did not know the change yet. What a change may
//! touch is written with it, and `ingest` counts those windows anew.

use domain::{Instant, ProductId, Result, Scope};
use store::{StoreError, Tx};

/// Usage that a change of the catalog may have another say in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// None.
    Nothing,
    /// That of some products.
    Products(Vec<ProductId>),
    /// That of every product.
    Everything,
}

/// Says that usage from an instant on (`None`: since ever) is judged anew. Nothing is asked for where no subscription can have
/// such usage.
///
/// # Errors
/// As every statement.
pub(crate) async fn request(scope: &Scope, tx: &mut Tx, from: Option<Instant>, touched: Touched) -> Result<()> {
    let products = match touched {
        Touched::Nothing => return Ok(()),
        Touched::Products(products) => Some(products),
        Touched::Everything => None,
    };
    sqlx::query(
        "INSERT INTO catalog_recount (workspace_id, from_at, product_ids)
         SELECT $1, $2, $3
         WHERE EXISTS (SELECT FROM subscription_item
                       WHERE workspace_id = $1 AND ($3::uuid[] IS NULL OR product_id = ANY($3)))",
    )
    .bind(scope.workspace_id)
    .bind(from)
    .bind(products.map(|products| products.into_iter().map(|id| id.0).collect::<Vec<_>>()))
    .execute(tx.conn())
    .await
    .context("asking for usage to be counted anew")?;
    Ok(())
}
