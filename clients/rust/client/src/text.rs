//! Generated text, as a stream or whole.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, TryStreamExt};
use tonic::Status;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::proto::{
    ChatMessage, ChatRequest, ChatResponse, GenerationUsage, TextRequest, TextResponse,
};

impl Client {
    /// Generates the next message of a conversation.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use futures_util::TryStreamExt;
    /// use ml_client::proto::{ChatMessage, ChatRequest};
    ///
    /// # async fn run(client: ml_client::Client) -> Result<(), ml_client::Error> {
    /// let mut answer = client
    ///     .chat(ChatRequest {
    ///         model: "HuggingFaceTB/SmolLM2-135M-Instruct".into(),
    ///         messages: vec![ChatMessage::user("What is the capital of France?")],
    ///         temperature: Some(0.0),
    ///         ..Default::default()
    ///     })
    ///     .await?;
    /// while let Some(text) = answer.try_next().await? {
    ///     print!("{text}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: the call ended with an error status; items of the stream may be errors too.
    pub async fn chat(&self, request: ChatRequest) -> Result<Generation> {
        let messages = self.text().chat_completion(request).await?.into_inner();
        Ok(Generation::new(messages.map_ok(Piece::from)))
    }

    /// Continues a prompt.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use ml_client::proto::TextRequest;
    ///
    /// # async fn run(client: ml_client::Client) -> Result<(), ml_client::Error> {
    /// let request = TextRequest {
    ///     model: "HuggingFaceTB/SmolLM2-135M-Instruct".into(),
    ///     prompt: "The capital of France is".into(),
    ///     max_length: 8, // new tokens
    ///     ..Default::default()
    /// };
    /// let answer = client.generate(request).await?.answer().await?;
    /// println!("{} ({})", answer.text, answer.finish.reason);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: the call ended with an error status; items of the stream may be errors too.
    pub async fn generate(&self, request: TextRequest) -> Result<Generation> {
        let messages = self.text().generate_text(request).await?.into_inner();
        Ok(Generation::new(messages.map_ok(Piece::from)))
    }
}

/// Text while it is generated: a stream of new, non-empty pieces.
///
/// It ends with `None` after the last piece; [`Generation::finish`] then says how it ended.
/// Dropping it earlier cancels the call. [`Client::chat`] has an example.
pub struct Generation {
    pieces: BoxStream<'static, Result<Piece, Status>>,
    finish: Option<Finish>,
    failed: bool,
}

/// How a generation ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// "stop": the model or a stop string ended it; "length": it has reached its limit of tokens.
    pub reason: String,
    /// Token counts and times.
    pub usage: GenerationUsage,
}

/// A complete generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The whole text.
    pub text: String,
    /// How it ended.
    pub finish: Finish,
}

impl Generation {
    fn new(pieces: impl Stream<Item = Result<Piece, Status>> + Send + 'static) -> Self {
        Self {
            pieces: pieces.boxed(),
            finish: None,
            failed: false,
        }
    }

    /// How the generation ended, once the stream has ended.
    #[must_use]
    pub fn finish(&self) -> Option<&Finish> {
        self.finish.as_ref()
    }

    /// Waits for the rest of the text; [`Client::generate`] has an example.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] or [`Error::Incomplete`]: the stream ended before it was complete.
    pub async fn answer(mut self) -> Result<Answer> {
        let mut text = String::new();
        while let Some(piece) = self.try_next().await? {
            text += &piece;
        }
        let finish = self.finish.ok_or(Error::Incomplete)?;
        Ok(Answer { text, finish })
    }
}

impl Stream for Generation {
    type Item = Result<String>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while !self.failed {
            match ready!(self.pieces.poll_next_unpin(context)) {
                Some(Ok(piece)) => {
                    if piece.finish.is_some() {
                        self.finish = piece.finish;
                    }
                    if !piece.text.is_empty() {
                        return Poll::Ready(Some(Ok(piece.text)));
                    }
                }
                Some(Err(status)) => {
                    self.failed = true;
                    return Poll::Ready(Some(Err(status.into())));
                }
                None if self.finish.is_some() => return Poll::Ready(None),
                None => {
                    self.failed = true;
                    return Poll::Ready(Some(Err(Error::Incomplete)));
                }
            }
        }
        Poll::Ready(None)
    }
}

impl ChatMessage {
    /// A message of the user.
    ///
    /// # Example
    ///
    /// ```
    /// let message = ml_client::proto::ChatMessage::user("What is the capital of France?");
    /// assert_eq!(message.role, "user");
    /// ```
    #[must_use]
    pub fn user(content: impl Into<String>) -> Self {
        Self::of("user", content)
    }

    /// A message of the model, such as an earlier answer.
    #[must_use]
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::of("assistant", content)
    }

    /// Instructions to the model; they come first.
    #[must_use]
    pub fn system(content: impl Into<String>) -> Self {
        Self::of("system", content)
    }

    fn of(role: &str, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            ..Default::default()
        }
    }
}

/// One message of either RPC.
struct Piece {
    text: String,
    finish: Option<Finish>,
}

impl From<ChatResponse> for Piece {
    fn from(message: ChatResponse) -> Self {
        let finish = message.done.then(|| Finish {
            reason: message.finish_reason,
            usage: message.usage.unwrap_or_default(),
        });
        let text = message.content;
        Self { text, finish }
    }
}

impl From<TextResponse> for Piece {
    fn from(message: TextResponse) -> Self {
        let finish = message.done.then(|| Finish {
            reason: message.finish_reason,
            usage: message.usage.unwrap_or_default(),
        });
        let text = message.text;
        Self { text, finish }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn generation(items: Vec<Result<ChatResponse, Status>>) -> Generation {
        Generation::new(stream::iter(items).map_ok(Piece::from))
    }

    fn message(content: &str) -> ChatResponse {
        ChatResponse {
            content: content.into(),
            ..Default::default()
        }
    }

    fn last() -> ChatResponse {
        ChatResponse {
            done: true,
            finish_reason: "stop".into(),
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn texts_come_and_the_finish_after_them() {
        let mut answer = generation(vec![Ok(message("Par")), Ok(message("is")), Ok(last())]);
        let mut texts = Vec::new();
        while let Some(text) = answer.try_next().await.expect("no error") {
            assert_eq!(answer.finish(), None);
            texts.push(text);
        }
        assert_eq!(texts, ["Par", "is"]);
        assert_eq!(answer.finish().map(|end| end.reason.as_str()), Some("stop"));
        assert!(answer.next().await.is_none());
    }

    #[tokio::test]
    async fn the_whole_answer() {
        let items = vec![Ok(message("Par")), Ok(message("is")), Ok(last())];
        let answer = generation(items).answer().await.expect("no error");
        assert_eq!(answer.text, "Paris");
        assert_eq!(answer.finish.reason, "stop");
    }

    #[tokio::test]
    async fn an_answer_without_its_end_is_an_error_once() {
        let mut answer = generation(vec![Ok(message("Par"))]);
        assert!(matches!(answer.next().await, Some(Ok(_))));
        assert!(matches!(answer.next().await, Some(Err(Error::Incomplete))));
        assert!(answer.next().await.is_none());
    }

    #[tokio::test]
    async fn an_error_ends_the_stream() {
        let items = vec![
            Ok(message("Par")),
            Err(Status::unavailable("gone")),
            Ok(message("is")),
        ];
        let mut answer = generation(items);
        assert!(matches!(answer.next().await, Some(Ok(_))));
        assert!(matches!(answer.next().await, Some(Err(Error::Call(_)))));
        assert!(answer.next().await.is_none());
    }
}
