//! What requests of generations ask for: forms of answers, tools, and which of them is called.

use crate::proto::{
    ChatRequest, Choices, ResponseFormat, TextRequest, TokenCountRequest, Tool, response_format,
};

impl ResponseFormat {
    /// Some JSON object.
    #[must_use]
    pub fn json_object() -> Self {
        Self::of(response_format::Kind::JsonObject(true))
    }

    /// JSON that fits a JSON schema.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use ml_client::proto::{ChatMessage, ChatRequest, ResponseFormat};
    ///
    /// # async fn run(client: ml_client::Client) -> Result<(), ml_client::Error> {
    /// let schema = r#"{"type": "object", "properties": {"capital": {"type": "string"}},
    ///     "required": ["capital"], "additionalProperties": false}"#;
    /// let request = ChatRequest {
    ///     model: "HuggingFaceTB/SmolLM2-135M-Instruct".into(),
    ///     messages: vec![ChatMessage::user("What is the capital of France?")],
    ///     response_format: Some(ResponseFormat::json_schema(schema)),
    ///     ..Default::default()
    /// };
    /// println!("{}", client.chat(request).await?.answer().await?.text);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn json_schema(schema: impl Into<String>) -> Self {
        Self::of(response_format::Kind::JsonSchema(schema.into()))
    }

    /// What matches a regular expression as a whole.
    ///
    /// # Example
    ///
    /// ```
    /// use ml_client::proto::{ResponseFormat, TextRequest};
    ///
    /// let request = TextRequest {
    ///     response_format: Some(ResponseFormat::regex("[0-9]{4}")),
    ///     ..Default::default()
    /// };
    /// # assert!(request.response_format.is_some());
    /// ```
    #[must_use]
    pub fn regex(expression: impl Into<String>) -> Self {
        Self::of(response_format::Kind::Regex(expression.into()))
    }

    /// A sentence of a grammar in EBNF, as GBNF writes it, from its rule "root".
    ///
    /// # Example
    ///
    /// ```
    /// use ml_client::proto::{ResponseFormat, response_format::Kind};
    ///
    /// let form = ResponseFormat::grammar(r#"root ::= "yes" | "no""#);
    /// assert!(matches!(form.kind, Some(Kind::Grammar(_))));
    /// ```
    #[must_use]
    pub fn grammar(rules: impl Into<String>) -> Self {
        Self::of(response_format::Kind::Grammar(rules.into()))
    }

    /// One of some texts.
    ///
    /// # Example
    ///
    /// ```
    /// use ml_client::proto::{ResponseFormat, response_format::Kind};
    ///
    /// let form = ResponseFormat::choice(["positive", "negative"]);
    /// let Some(Kind::Choice(choices)) = form.kind else { panic!() };
    /// assert_eq!(choices.texts, ["positive", "negative"]);
    /// ```
    #[must_use]
    pub fn choice<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        let texts = texts.into_iter().map(Into::into).collect();
        Self::of(response_format::Kind::Choice(Choices { texts }))
    }

    fn of(kind: response_format::Kind) -> Self {
        Self { kind: Some(kind) }
    }
}

impl Tool {
    /// A function that the model may call. `parameters` is the JSON schema of its arguments, an
    /// object; empty for no arguments.
    ///
    /// # Example
    ///
    /// ```
    /// use ml_client::proto::Tool;
    ///
    /// let schema = r#"{"type": "object", "properties": {"city": {"type": "string"}}}"#;
    /// let tool = Tool::new("weather", "The weather of a city.", schema).strict();
    /// assert!(tool.strict);
    /// ```
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        description: impl Into<String>,
        parameters: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            description: description.into(),
            parameters: parameters.into(),
            ..Default::default()
        }
    }

    /// The arguments of each call must fit its parameters.
    #[must_use]
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }
}

/// Whether a model calls tools, and which.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// It calls none, and is not told of them.
    None,
    /// It calls one or more.
    Required,
    /// It calls this one.
    Named(String),
}

impl ChatRequest {
    /// The request with tools that the model may, or must, call; [`Answer::message`] has an example
    /// of what follows.
    ///
    /// # Example
    ///
    /// ```
    /// use ml_client::ToolChoice;
    /// use ml_client::proto::{ChatMessage, ChatRequest, Tool};
    ///
    /// let request = ChatRequest {
    ///     model: "Qwen/Qwen3-0.6B".into(),
    ///     messages: vec![ChatMessage::user("What time is it?")],
    ///     ..Default::default()
    /// };
    /// let clock = Tool::new("clock", "The time of day.", "");
    /// let request = request.with_tools([clock], ToolChoice::Named("clock".into()));
    /// assert_eq!(request.tool_name, "clock");
    /// ```
    ///
    /// [`Answer::message`]: crate::Answer::message
    #[must_use]
    pub fn with_tools(mut self, tools: impl IntoIterator<Item = Tool>, choice: ToolChoice) -> Self {
        self.tools = tools.into_iter().collect();
        let (choice, name) = match choice {
            ToolChoice::Auto => ("auto", String::new()),
            ToolChoice::None => ("none", String::new()),
            ToolChoice::Required => ("required", String::new()),
            ToolChoice::Named(name) => ("", name),
        };
        self.tool_choice = choice.into();
        self.tool_name = name;
        self
    }
}

impl From<&ChatRequest> for TokenCountRequest {
    /// What [`Client::chat`](crate::Client::chat) would read.
    fn from(request: &ChatRequest) -> Self {
        let told = request.tool_choice != "none";
        Self {
            model: request.model.clone(),
            messages: request.messages.clone(),
            tools: if told {
                request.tools.clone()
            } else {
                Vec::new()
            },
            think: request.think,
            ..Default::default()
        }
    }
}

impl From<&TextRequest> for TokenCountRequest {
    /// What [`Client::generate`](crate::Client::generate) would read.
    fn from(request: &TextRequest) -> Self {
        Self {
            model: request.model.clone(),
            text: request.prompt.clone(),
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_that_the_model_is_not_told_of_are_not_counted() {
        let clock = || Tool::new("clock", "", "");
        let counted = |choice| {
            let request = ChatRequest::default().with_tools([clock()], choice);
            TokenCountRequest::from(&request).tools.len()
        };
        assert_eq!(counted(ToolChoice::Required), 1);
        assert_eq!(counted(ToolChoice::None), 0);
    }
}
