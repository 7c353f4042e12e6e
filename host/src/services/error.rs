/// Why a service cannot be had. Each is a mistake in how the services were put together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ServiceError {
    #[error("no service {0} is registered for this place")]
    Unknown(&'static str),
    #[error("the service {0} is registered twice")]
    Twice(&'static str),
    #[error("the service {service} needs {needs}, which is {what}")]
    OutOfReach { service: &'static str, needs: &'static str, what: &'static str },
    #[error("services need one another: {}", .0.join(" -> "))]
    Cycle(Vec<&'static str>),
}
