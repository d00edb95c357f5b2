//! Client of the ML services: text models, live vision and model management, on one gRPC port.
//!
//! ```no_run
//! use futures_util::TryStreamExt;
//! use ml_client::Client;
//! use ml_client::proto::{ChatMessage, ChatRequest};
//!
//! # async fn run() -> Result<(), ml_client::Error> {
//! let client = Client::connect("http://localhost:50051").await?;
//! let model = "HuggingFaceTB/SmolLM2-135M-Instruct";
//! client.load(model, "text-generation").await?;
//!
//! let mut answer = client
//!     .chat(ChatRequest {
//!         model: model.into(),
//!         messages: vec![ChatMessage::user("What is the capital of France?")],
//!         ..Default::default()
//!     })
//!     .await?;
//! while let Some(text) = answer.try_next().await? {
//!     print!("{text}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`Client`] wraps the calls that take more than a line by hand: generated text as a stream, vectors,
//! detections, and video with a limit on the frames in flight. For everything else use the typed stubs
//! ([`Client::models`], [`Client::text`], [`Client::vision`]); their messages are in [`proto`].
//!
//! Nothing is retried: [`Error::is_retryable`] and [`Error::retry_after`] say when trying again helps.
//! Dropping a future or a stream cancels its call, and the service stops the work.

mod client;
mod error;
mod models;
mod requests;
mod text;
mod video;
mod window;

pub use client::{Client, MAX_MESSAGE_BYTES, endpoint};
pub use error::{CallError, Error, FieldViolation};
pub use models::{Evict, Load};
pub use requests::ToolChoice;
pub use text::{Answer, Finish, Generation, Piece};
pub use video::{Answers, FramePolicy, Skip, Skipped, VideoOptions, VideoTask, tasks};

pub use tonic;

// Compiles the examples of the READMEs with the doc tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ClientReadme;
#[cfg(doctest)]
#[doc = include_str!("../../../../README.md")]
struct RepositoryReadme;

/// The messages and stubs, generated from the repository's `protos/ml`.
#[allow(missing_docs, clippy::pedantic)]
pub mod proto {
    tonic::include_proto!("ml");
}
