//! Callers that ask one question each, all at the same moment.

use std::sync::Arc;

use anyhow::Context;
use futures_util::future::try_join_all;
use ml_client::Client;
use ml_client::proto::{ChatMessage, ChatRequest, TextRequest};
use serde::{Deserialize, Serialize};

use crate::cpu;
use crate::start::Start;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    endpoint: String,
    rpc: Rpc,
    model: String,
    /// What the model is told before each question; empty for nothing.
    #[serde(default)]
    system: String,
    /// One for each caller; each has its own connection.
    questions: Vec<String>,
    max_tokens: i32,
    temperature: f32,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Rpc {
    Chat,
    Generate,
}

#[derive(Serialize)]
pub struct Outcome {
    /// From the moment all callers were connected until the last message.
    seconds: f64,
    client_cpu_seconds: f64,
    /// In the order of the questions.
    callers: Vec<Caller>,
}

#[derive(Default, Serialize)]
struct Caller {
    /// When each message arrived since the start, the last one included.
    messages: Vec<f64>,
    /// Generated tokens, from the last message.
    tokens: i32,
    text: String,
    finish_reason: String,
}

pub async fn run(plan: Plan) -> anyhow::Result<Outcome> {
    let connecting = plan
        .questions
        .iter()
        .map(|_| Client::connect(&plan.endpoint));
    let connections = try_join_all(connecting).await?;
    let start = Arc::new(Start::new(connections.len()));
    let tasks: Vec<_> = connections
        .into_iter()
        .zip(&plan.questions)
        .map(|(client, question)| {
            let start = Arc::clone(&start);
            match plan.rpc {
                Rpc::Chat => tokio::spawn(chat(client, start, chat_request(&plan, question))),
                Rpc::Generate => {
                    tokio::spawn(generate(client, start, text_request(&plan, question)))
                }
            }
        })
        .collect();
    let mut callers = Vec::new();
    for task in tasks {
        callers.push(task.await??);
    }
    let began = start.began().context("there are no questions")?;
    let last = callers.iter().filter_map(|each| each.messages.last());
    Ok(Outcome {
        seconds: last.copied().fold(0.0, f64::max),
        client_cpu_seconds: cpu::seconds() - began.cpu_seconds,
        callers,
    })
}

fn chat_request(plan: &Plan, question: &str) -> ChatRequest {
    let mut messages = vec![ChatMessage::user(question)];
    if !plan.system.is_empty() {
        messages.insert(0, ChatMessage::system(&plan.system));
    }
    ChatRequest {
        messages,
        model: plan.model.clone(),
        temperature: Some(plan.temperature),
        max_tokens: plan.max_tokens,
        ..Default::default()
    }
}

fn text_request(plan: &Plan, question: &str) -> TextRequest {
    TextRequest {
        prompt: question.into(),
        model: plan.model.clone(),
        temperature: Some(plan.temperature),
        max_length: plan.max_tokens,
        ..Default::default()
    }
}

/// Uses the stub, since the time of every message counts.
async fn chat(client: Client, start: Arc<Start>, request: ChatRequest) -> anyhow::Result<Caller> {
    let mut caller = Caller::default();
    let start = start.all().await.time;
    let mut answer = client.text().chat_completion(request).await?.into_inner();
    while let Some(message) = answer.message().await? {
        caller.messages.push(start.elapsed().as_secs_f64());
        caller.text += &message.content;
        caller.tokens = message.usage.map_or(0, |usage| usage.generated_tokens);
        caller.finish_reason = message.finish_reason;
    }
    Ok(caller)
}

async fn generate(
    client: Client,
    start: Arc<Start>,
    request: TextRequest,
) -> anyhow::Result<Caller> {
    let mut caller = Caller::default();
    let start = start.all().await.time;
    let mut answer = client.text().generate_text(request).await?.into_inner();
    while let Some(message) = answer.message().await? {
        caller.messages.push(start.elapsed().as_secs_f64());
        caller.text += &message.text;
        caller.tokens = message.usage.map_or(0, |usage| usage.generated_tokens);
        caller.finish_reason = message.finish_reason;
    }
    Ok(caller)
}
