//! Generated text, as a stream or whole.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt, TryStreamExt};
use tonic::Status;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::proto::{
    ChatMessage, ChatRequest, ChatResponse, GenerationUsage, TextRequest, TextResponse,
    TokenCountRequest, TokenCountResponse, TokenLogprob, ToolCall, ToolCallDelta,
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

    /// Counts the tokens of a text or a conversation, as the model would read it; both
    /// [`ChatRequest`] and [`TextRequest`] can be turned into the request.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use ml_client::proto::{ChatMessage, ChatRequest};
    ///
    /// # async fn run(client: ml_client::Client) -> Result<(), ml_client::Error> {
    /// let request = ChatRequest {
    ///     model: "HuggingFaceTB/SmolLM2-135M-Instruct".into(),
    ///     messages: vec![ChatMessage::user("What is the capital of France?")],
    ///     ..Default::default()
    /// };
    /// let count = client.count_tokens(&request).await?;
    /// println!("{} of {} tokens", count.tokens, count.context);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: the call ended with an error status.
    pub async fn count_tokens(
        &self,
        request: impl Into<TokenCountRequest>,
    ) -> Result<TokenCountResponse> {
        Ok(self.text().token_count(request.into()).await?.into_inner())
    }
}

/// An answer while it is generated: a stream of new, non-empty pieces of text.
///
/// It ends with `None` after the last piece; [`Generation::finish`] then says how it ended. What is
/// no text, and the texts of a request's second answer and later ones, come with
/// [`Generation::pieces`], [`Generation::answer`] and [`Generation::answers`]. Dropping it earlier
/// cancels the call. [`Client::chat`] has an example.
pub struct Generation {
    pieces: BoxStream<'static, Result<Piece, Status>>,
    finish: Option<Finish>,
    failed: bool,
}

/// What is new in one of a request's answers.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Piece {
    /// Which of `n` answers it belongs to.
    pub index: usize,
    /// New text.
    pub text: String,
    /// New reasoning, if the request has `separate_reasoning`.
    pub reasoning: String,
    /// What is new of calls of tools.
    pub tool_calls: Vec<ToolCallDelta>,
    /// Of the tokens since the answer's previous piece, if the request has `logprobs`.
    pub logprobs: Vec<TokenLogprob>,
    /// Why the answer has ended; empty before. The reasons are those of [`Finish`].
    pub finish_reason: String,
    /// Of all answers together, with the last piece alone.
    pub usage: Option<GenerationUsage>,
}

/// How a generation ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Finish {
    /// "stop": the model or a stop string ended it; "length": it has reached its limit of tokens;
    /// "`tool_calls`": it calls tools.
    pub reason: String,
    /// Token counts and times, of all answers of a request together.
    pub usage: GenerationUsage,
}

/// A complete answer.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Answer {
    /// The whole text.
    pub text: String,
    /// What the model thought before, if the request has `separate_reasoning`.
    pub reasoning: String,
    /// The tools that it calls.
    pub tool_calls: Vec<ToolCall>,
    /// Of all tokens, if the request has `logprobs`.
    pub logprobs: Vec<TokenLogprob>,
    /// How it ended.
    pub finish: Finish,
}

impl Answer {
    /// The answer as a message of the conversation, for the request with the results of its calls.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use ml_client::proto::{ChatMessage, ChatRequest, Tool};
    ///
    /// # fn weather(arguments: &str) -> String { arguments.into() }
    /// # async fn run(client: ml_client::Client) -> Result<(), ml_client::Error> {
    /// let parameters = r#"{"type": "object", "properties": {"city": {"type": "string"}}}"#;
    /// let mut request = ChatRequest {
    ///     model: "Qwen/Qwen3-0.6B".into(),
    ///     messages: vec![ChatMessage::user("Is it warm in Oslo?")],
    ///     tools: vec![Tool::new("weather", "The weather of a city.", parameters)],
    ///     ..Default::default()
    /// };
    /// let answer = client.chat(request.clone()).await?.answer().await?;
    /// for call in &answer.tool_calls {
    ///     println!("{}({})", call.name, call.arguments);
    /// }
    /// request.messages.push(answer.message());
    /// for call in answer.tool_calls {
    ///     let result = weather(&call.arguments);
    ///     request.messages.push(ChatMessage::tool(call.id, result));
    /// }
    /// println!("{}", client.chat(request).await?.answer().await?.text);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn message(&self) -> ChatMessage {
        ChatMessage {
            reasoning: self.reasoning.clone(),
            tool_calls: self.tool_calls.clone(),
            ..ChatMessage::assistant(&self.text)
        }
    }

    fn add(&mut self, piece: Piece) {
        self.text += &piece.text;
        self.reasoning += &piece.reasoning;
        self.logprobs.extend(piece.logprobs);
        for delta in piece.tool_calls {
            let index = usize::try_from(delta.index).unwrap_or_default();
            if index >= self.tool_calls.len() {
                self.tool_calls.push(ToolCall {
                    id: delta.id,
                    name: delta.name,
                    arguments: delta.arguments,
                });
            } else {
                self.tool_calls[index].arguments += &delta.arguments;
            }
        }
        if !piece.finish_reason.is_empty() {
            self.finish.reason = piece.finish_reason;
        }
    }
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

    /// Everything that comes, as it comes: texts of all answers, reasoning, calls of tools and
    /// log-probabilities.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use futures_util::TryStreamExt;
    /// use ml_client::proto::{ChatMessage, ChatRequest};
    ///
    /// # async fn run(client: ml_client::Client) -> Result<(), ml_client::Error> {
    /// let request = ChatRequest {
    ///     model: "Qwen/Qwen3-0.6B".into(),
    ///     messages: vec![ChatMessage::user("Is 97 a prime number?")],
    ///     separate_reasoning: true,
    ///     think: Some(true),
    ///     ..Default::default()
    /// };
    /// let mut pieces = client.chat(request).await?.pieces();
    /// while let Some(piece) = pieces.try_next().await? {
    ///     eprint!("{}", piece.reasoning);
    ///     print!("{}", piece.text);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn pieces(self) -> impl Stream<Item = Result<Piece>> + Send + Unpin {
        stream::unfold(self, |mut generation| async move {
            poll_fn(|context| generation.poll_piece(context))
                .await
                .map(|piece| (piece, generation))
        })
        .boxed()
    }

    /// Waits for the rest of the answer, the first one of several; [`Client::generate`] has an
    /// example.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] or [`Error::Incomplete`]: the stream ended before it was complete.
    pub async fn answer(self) -> Result<Answer> {
        let answers = self.answers().await?;
        answers.into_iter().next().ok_or(Error::Incomplete)
    }

    /// Waits for the rest of all answers of a request with `n`.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use ml_client::proto::{ChatMessage, ChatRequest};
    ///
    /// # async fn run(client: ml_client::Client) -> Result<(), ml_client::Error> {
    /// let request = ChatRequest {
    ///     model: "HuggingFaceTB/SmolLM2-135M-Instruct".into(),
    ///     messages: vec![ChatMessage::user("Name a colour.")],
    ///     temperature: Some(1.0),
    ///     n: 3,
    ///     logprobs: true,
    ///     ..Default::default()
    /// };
    /// for answer in client.chat(request).await?.answers().await? {
    ///     let logprobs = answer.logprobs.iter().filter_map(|token| token.logprob);
    ///     println!("{} ({})", answer.text, logprobs.sum::<f32>());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Call`] or [`Error::Incomplete`]: the stream ended before it was complete.
    pub async fn answers(mut self) -> Result<Vec<Answer>> {
        let mut answers = Vec::new();
        while let Some(piece) = poll_fn(|context| self.poll_piece(context)).await {
            let piece = piece?;
            if piece.index >= answers.len() {
                answers.resize_with(piece.index + 1, Answer::default);
            }
            answers[piece.index].add(piece);
        }
        let finish = self.finish.ok_or(Error::Incomplete)?;
        for answer in &mut answers {
            answer.finish.usage = finish.usage;
        }
        Ok(answers)
    }

    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Piece>>> {
        if self.failed {
            return Poll::Ready(None);
        }
        match ready!(self.pieces.poll_next_unpin(context)) {
            Some(Ok(piece)) => {
                if let Some(usage) = piece.usage {
                    let reason = piece.finish_reason.clone();
                    self.finish = Some(Finish { reason, usage });
                }
                Poll::Ready(Some(Ok(piece)))
            }
            Some(Err(status)) => {
                self.failed = true;
                Poll::Ready(Some(Err(status.into())))
            }
            None if self.finish.is_some() => Poll::Ready(None),
            None => {
                self.failed = true;
                Poll::Ready(Some(Err(Error::Incomplete)))
            }
        }
    }
}

impl Stream for Generation {
    type Item = Result<String>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match ready!(self.poll_piece(context)) {
                Some(Ok(piece)) if piece.index > 0 || piece.text.is_empty() => {}
                Some(Ok(piece)) => return Poll::Ready(Some(Ok(piece.text))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
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

    /// Instructions to the model, of an application's developer; as those of the system for models
    /// that know no such role.
    #[must_use]
    pub fn developer(content: impl Into<String>) -> Self {
        Self::of("developer", content)
    }

    /// The result of the call of a tool; [`Answer::message`] has an example.
    #[must_use]
    pub fn tool(call_id: impl Into<String>, result: impl Into<String>) -> Self {
        Self {
            tool_call_id: call_id.into(),
            ..Self::of("tool", result)
        }
    }

    fn of(role: &str, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            ..Default::default()
        }
    }
}

impl From<ChatResponse> for Piece {
    fn from(message: ChatResponse) -> Self {
        Self {
            index: usize::try_from(message.index).unwrap_or_default(),
            text: message.content,
            reasoning: message.reasoning,
            tool_calls: message.tool_calls,
            logprobs: message.logprobs,
            finish_reason: message.finish_reason,
            usage: message.done.then(|| message.usage.unwrap_or_default()),
        }
    }
}

impl From<TextResponse> for Piece {
    fn from(message: TextResponse) -> Self {
        Self {
            index: usize::try_from(message.index).unwrap_or_default(),
            text: message.text,
            logprobs: message.logprobs,
            finish_reason: message.finish_reason,
            usage: message.done.then(|| message.usage.unwrap_or_default()),
            ..Self::default()
        }
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

    fn of(index: i32, content: &str, finish_reason: &str) -> ChatResponse {
        ChatResponse {
            index,
            finish_reason: finish_reason.into(),
            ..message(content)
        }
    }

    fn call(index: i32, id: &str, arguments: &str) -> ToolCallDelta {
        ToolCallDelta {
            index,
            id: id.into(),
            name: if id.is_empty() { "" } else { "add" }.into(),
            arguments: arguments.into(),
        }
    }

    #[tokio::test]
    async fn several_answers_are_kept_apart() {
        let items = || {
            vec![
                Ok(of(0, "Par", "")),
                Ok(of(1, "Lon", "")),
                Ok(of(0, "is", "")),
                Ok(of(0, "", "stop")),
                Ok(of(1, "don", "")),
                Ok(ChatResponse {
                    index: 1,
                    finish_reason: "length".into(),
                    ..last()
                }),
            ]
        };
        let answers = generation(items()).answers().await.expect("no error");
        let ends: Vec<_> = answers
            .iter()
            .map(|each| (each.text.as_str(), each.finish.reason.as_str()))
            .collect();
        assert_eq!(ends, [("Paris", "stop"), ("London", "length")]);
        let texts: Vec<_> = generation(items()).try_collect().await.expect("no error");
        assert_eq!(texts, ["Par", "is"]);
    }

    #[tokio::test]
    async fn reasoning_calls_and_logprobs_are_put_together() {
        let token = TokenLogprob {
            token_id: 7,
            ..Default::default()
        };
        let items = vec![
            Ok(ChatResponse {
                reasoning: "Hm.".into(),
                logprobs: vec![token.clone()],
                ..Default::default()
            }),
            Ok(ChatResponse {
                tool_calls: vec![call(0, "a", "{")],
                logprobs: vec![token],
                ..Default::default()
            }),
            Ok(ChatResponse {
                tool_calls: vec![call(0, "", "}"), call(1, "b", "{}")],
                ..Default::default()
            }),
            Ok(ChatResponse {
                finish_reason: "tool_calls".into(),
                ..last()
            }),
        ];
        let pieces: Vec<_> = generation(items.clone())
            .pieces()
            .try_collect()
            .await
            .expect("no error");
        assert_eq!(pieces.len(), 4);
        assert_eq!(pieces[0].reasoning, "Hm.");
        assert_eq!(pieces[2].tool_calls[1].id, "b");

        let answer = generation(items).answer().await.expect("no error");
        assert_eq!(answer.finish.reason, "tool_calls");
        assert_eq!(answer.logprobs.len(), 2);
        let message = answer.message();
        assert_eq!(
            (message.role.as_str(), message.reasoning.as_str()),
            ("assistant", "Hm.")
        );
        let calls: Vec<_> = message
            .tool_calls
            .iter()
            .map(|each| {
                (
                    each.id.as_str(),
                    each.name.as_str(),
                    each.arguments.as_str(),
                )
            })
            .collect();
        assert_eq!(calls, [("a", "add", "{}"), ("b", "add", "{}")]);
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
