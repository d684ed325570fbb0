//! The router and the OpenAPI document, built from one list of handlers.

use axum::Router;
use axum::middleware;
use bytes::Bytes;
use catalog::binding::FormulaBinding;
use catalog::texts::TranslationFields;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, ResponseBuilder,
};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;

use crate::problem::{CONTENT_TYPE, Problem, ProblemField};
use crate::{App, health, observe, tags};

/// Every route of the process, around this state.
pub fn router(app: App) -> Router {
    let (routes, document) = assembled();
    outer(routes, document, app)
}

/// Health, metrics and the document only: for a process without the role `api`.
pub fn health_router(app: App) -> Router {
    outer(Router::new(), document(), app)
}

fn outer(routes: Router<App>, document: OpenApi, app: App) -> Router {
    // The document holds strings, numbers and lists only, which always become JSON.
    let document = document.to_json().unwrap_or_else(|error| unreachable!("the OpenAPI document: {error}"));
    routes
        .merge(health::routes(Bytes::from(document)))
        .fallback(observe::unknown_route)
        .layer(CatchPanicLayer::custom(observe::panicked))
        .layer(middleware::from_fn_with_state(app.clone(), observe::observe))
        .with_state(app)
}

/// The OpenAPI document, without a server.
#[must_use]
pub fn document() -> OpenApi {
    assembled().1
}

fn assembled() -> (Router<App>, OpenApi) {
    let (routes, mut document) = OpenApiRouter::with_openapi(frame()).merge(tags::routes()).split_for_parts();
    for item in document.paths.paths.values_mut() {
        operations(item).for_each(document_refusals);
    }
    (routes, document)
}

fn frame() -> OpenApi {
    let key = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("sk_live_… or sk_test_…")
        .description(Some("An API key. It fixes organization, workspace, mode and permissions."))
        .build();
    let components = ComponentsBuilder::new()
        .schema(Problem::name(), Problem::schema())
        .schema(ProblemField::name(), ProblemField::schema())
        .security_scheme("api_key", SecurityScheme::Http(key));
    let components = aliases().into_iter().fold(components, |all, (name, schema)| all.schema(name, schema)).build();
    let info = InfoBuilder::new()
        .title("Kontorion Billing API")
        .version("1")
        .description(Some("Meters usage, rates it, keeps the money and bills it."))
        .build();
    OpenApiBuilder::new()
        .info(info)
        .components(Some(components))
        .security(Some([SecurityRequirement::new::<_, [&str; 0], &str>("api_key", [])]))
        .build()
}

/// Names of the reference for maps and texts that stand inline where they are used.
fn aliases() -> [(&'static str, RefOr<Schema>); 7] {
    let map = |description: &str, values: RefOr<Schema>| {
        ObjectBuilder::new().description(Some(description)).additional_properties(Some(values)).into()
    };
    let any = || ObjectBuilder::new().schema_type(SchemaType::AnyValue).into();
    let named = |name: &str| Ref::from_schema_name(name).into();
    let duration =
        ObjectBuilder::new().schema_type(Type::String).description(Some("Go duration syntax, e.g. 15m, 24h"));
    [
        ("Metadata", map("At most 50 keys of up to 40 characters; strings up to 500, numbers, booleans", any())),
        ("CustomFields", map("Values of the organization's field definitions", any())),
        ("TranslationFields", TranslationFields::schema()),
        ("Translations", map("Locale to texts", named("TranslationFields"))),
        ("FormulaBinding", FormulaBinding::schema()),
        ("FormulaBindings", map("Variable to source", named("FormulaBinding"))),
        ("Duration", duration.into()),
    ]
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch]
        .into_iter()
        .filter_map(Option::as_mut)
}

/// What every operation may answer, described once.
fn document_refusals(operation: &mut Operation) {
    for (status, description) in [
        ("400", "The request is malformed; bad fields are listed in `fields`"),
        ("401", "The key is missing, unknown, expired or revoked"),
        ("403", "The key lacks the permission, or the address is not allowed"),
        ("404", "Absent, or another tenant's"),
        ("409", "The state does not allow it, or the value is taken"),
        ("413", "The body is too large"),
        ("422", "A rule refuses it"),
        ("429", "Too many requests; see Retry-After"),
        ("500", "Our defect; report the request_id"),
        ("503", "A dependency is away; nothing was done; see Retry-After"),
    ] {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(Problem::name()))).build();
        let response = ResponseBuilder::new().description(description).content(CONTENT_TYPE, content).build();
        operation.responses.responses.entry(status.to_owned()).or_insert(RefOr::T(response));
    }
}
