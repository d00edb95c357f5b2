//! Errors, with the `google.rpc` details that the services send.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The result of a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed or a stream ended early.
///
/// # Example
///
/// ```no_run
/// # async fn run(client: ml_client::Client) -> Result<(), ml_client::Error> {
/// let model = "sentence-transformers/all-MiniLM-L6-v2";
/// let vectors = match client.embed(model, ["a sentence"]).await {
///     Err(error) if error.reason() == Some("MODEL_NOT_LOADED") => {
///         client.load(model, "feature-extraction").await?;
///         client.embed(model, ["a sentence"]).await?
///     }
///     result => result?,
/// };
/// # Ok(())
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not valid, or nothing listens there.
    #[error("no connection to the services")]
    Transport(#[from] tonic::transport::Error),
    /// The call ended with a status.
    #[error(transparent)]
    Call(Box<CallError>),
    /// A response ended early without a status: the server or a proxy breaks the contract.
    #[error("the response ended before it was complete")]
    Incomplete,
}

impl Error {
    /// The decoded status, if a call ended with one.
    #[must_use]
    pub fn call(&self) -> Option<&CallError> {
        match self {
            Self::Call(error) => Some(error),
            _ => None,
        }
    }

    /// The stable reason of a failed call, such as `MODEL_NOT_LOADED`.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.call()?.reason.as_deref()
    }

    /// How long to wait before trying again, if the services say so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.call()?.retry_after
    }

    /// Whether the same call may succeed later: a service is down or restarting, or a queue is full.
    ///
    /// Also true if a service dies during a response, part of which may have been received.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// # async fn run(client: ml_client::Client) -> Result<(), ml_client::Error> {
    /// let models = loop {
    ///     match client.loaded().await {
    ///         Err(error) if error.is_retryable() => {
    ///             let pause = error.retry_after().unwrap_or(Duration::from_secs(1));
    ///             tokio::time::sleep(pause).await;
    ///         }
    ///         result => break result?,
    ///     }
    /// };
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Transport(_) | Self::Incomplete => true,
            Self::Call(error) => error.is_retryable(),
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status.into()))
    }
}

/// A call's status with its details decoded.
#[derive(Debug, thiserror::Error)]
#[error("{}: {}", self.reason.as_deref().unwrap_or_else(|| self.code.description()), self.message)]
#[non_exhaustive]
pub struct CallError {
    /// The gRPC code.
    pub code: Code,
    /// A sentence for people that names the field or the limit.
    pub message: String,
    /// A stable word in capitals for programs (`google.rpc.ErrorInfo`). Absent if the status comes
    /// from Envoy or tonic instead of a service.
    pub reason: Option<String>,
    /// Details of the reason, such as a limit.
    pub metadata: HashMap<String, String>,
    /// The invalid fields of the request (`google.rpc.BadRequest`).
    pub fields: Vec<FieldViolation>,
    /// When to try again (`google.rpc.RetryInfo`).
    pub retry_after: Option<Duration>,
    /// The status as received.
    #[source]
    pub status: Status,
}

/// An invalid field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// Its name in the proto.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

impl CallError {
    fn is_retryable(&self) -> bool {
        // Envoy ends a stream whose service died with INTERNAL; the services' own has a reason.
        let cut_off = matches!(self.code, Code::Internal | Code::Unknown) && self.reason.is_none();
        self.code == Code::Unavailable || self.retry_after.is_some() || cut_off
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let violations = details
            .bad_request()
            .map_or(&[][..], |each| &each.field_violations);
        Self {
            code: status.code(),
            message: status.message().to_owned(),
            reason: info.map(|info| info.reason.clone()),
            metadata: info.map(|info| info.metadata.clone()).unwrap_or_default(),
            fields: violations
                .iter()
                .map(|each| FieldViolation {
                    field: each.field.clone(),
                    description: each.description.clone(),
                })
                .collect(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            status,
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn queue_full() -> Status {
        let mut details = ErrorDetails::with_error_info(
            "QUEUE_FULL",
            "ml.services",
            HashMap::from([("limit".into(), "64".into())]),
        );
        details.set_retry_info(Some(Duration::from_millis(1500)));
        Status::with_error_details(Code::ResourceExhausted, "64 callers wait", details)
    }

    #[test]
    fn details_are_decoded() {
        let error = Error::from(queue_full());
        let call = error.call().expect("it is a call's");
        assert_eq!(call.code, Code::ResourceExhausted);
        assert_eq!(call.message, "64 callers wait");
        assert_eq!(call.metadata["limit"], "64");
        assert_eq!(error.reason(), Some("QUEUE_FULL"));
        assert_eq!(error.retry_after(), Some(Duration::from_millis(1500)));
        assert!(error.is_retryable());
        assert_eq!(error.to_string(), "QUEUE_FULL: 64 callers wait");
    }

    #[test]
    fn fields_at_fault_are_named() {
        let details = ErrorDetails::with_bad_request_violation("texts", "is empty");
        let status = Status::with_error_details(Code::InvalidArgument, "no texts", details);
        let error = Error::from(status);
        let violation = FieldViolation {
            field: "texts".into(),
            description: "is empty".into(),
        };
        assert_eq!(
            error.call().map(|call| &call.fields),
            Some(&vec![violation])
        );
        assert!(!error.is_retryable());
    }

    #[test]
    fn a_status_without_details_is_an_error_too() {
        for (code, retryable) in [
            (Code::Unavailable, true),
            (Code::Internal, true),
            (Code::Unimplemented, false),
            (Code::DeadlineExceeded, false),
        ] {
            let error = Error::from(Status::new(code, "said by a proxy"));
            assert_eq!(error.reason(), None);
            assert_eq!(error.is_retryable(), retryable, "{code:?}");
            assert!(error.to_string().ends_with("said by a proxy"));
        }
    }

    #[test]
    fn an_internal_error_of_a_service_stays_one() {
        let details = ErrorDetails::with_error_info("INTERNAL", "ml.services", HashMap::new());
        let status = Status::with_error_details(Code::Internal, "unexpected", details);
        assert!(!Error::from(status).is_retryable());
    }

    #[test]
    fn broken_details_hide_nothing() {
        let status = Status::with_details(Code::NotFound, "no file", vec![0xff; 8].into());
        let error = Error::from(status);
        assert_eq!(error.call().map(|call| call.code), Some(Code::NotFound));
        assert_eq!(error.reason(), None);
    }
}
