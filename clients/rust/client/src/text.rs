//! Answers that come as streams of text.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, TryStreamExt};
use tonic::Status;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::proto::{ChatRequest, ChatResponse, GenerationUsage, TextRequest, TextResponse};

impl Client {
    /// Answers a conversation.
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: the services say why not; so may the stream's items.
    pub async fn chat(&self, request: ChatRequest) -> Result<Generation> {
        let messages = self.text().chat_completion(request).await?.into_inner();
        Ok(Generation::new(messages.map_ok(Piece::from)))
    }

    /// Continues a prompt.
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: the services say why not; so may the stream's items.
    pub async fn generate(&self, request: TextRequest) -> Result<Generation> {
        let messages = self.text().generate_text(request).await?.into_inner();
        Ok(Generation::new(messages.map_ok(Piece::from)))
    }
}

/// An answer while it is made: a stream of texts, each only what is new, none of them empty.
///
/// It ends with `None` after the whole answer, and [`Generation::finish`] then tells how it ended.
/// Dropping it earlier cancels the call.
pub struct Generation {
    pieces: BoxStream<'static, Result<Piece, Status>>,
    finish: Option<Finish>,
    failed: bool,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// "stop": the model ended it, or a stop string did; "length": it has all the tokens allowed.
    pub reason: String,
    /// Tokens and times.
    pub usage: GenerationUsage,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// All of its text.
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

    /// How the answer ended, once the last text is there.
    #[must_use]
    pub fn finish(&self) -> Option<&Finish> {
        self.finish.as_ref()
    }

    /// Waits for the rest of the answer.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] or [`Error::Incomplete`]: it ended before it was complete.
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
