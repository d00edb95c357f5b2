//! Client of the ML services: text models, live vision and the life of the models, on one gRPC port.
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
//!         messages: vec![ChatMessage {
//!             role: "user".into(),
//!             content: "What is the capital of France?".into(),
//!             ..Default::default()
//!         }],
//!         ..Default::default()
//!     })
//!     .await?;
//! while let Some(text) = answer.try_next().await? {
//!     print!("{text}"); // only what is new
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`Client`] has the calls that take more than one line by hand: answers as streams of text, vectors,
//! detections, and video with a bound on the frames under way. Everything else is a call of the typed
//! stubs that it hands out ([`Client::models`], [`Client::text`], [`Client::vision`]), whose messages
//! are in [`proto`].
//!
//! Nothing is retried: [`Error::is_retryable`] and [`Error::retry_after`] say when a new try helps.
//! Dropping a future or a stream cancels its call, and the service stops the work.

mod client;
mod error;
mod text;
mod video;
mod window;

pub use client::{Client, MAX_MESSAGE_BYTES, endpoint};
pub use error::{CallError, Error, FieldViolation};
pub use text::{Answer, Finish, Generation};
pub use video::{Answers, FramePolicy, VideoOptions, VideoTask, tasks};

pub use tonic;

/// The messages and stubs, generated from the repository's `protos/ml`.
#[allow(missing_docs, clippy::pedantic)]
pub mod proto {
    tonic::include_proto!("ml");
}
