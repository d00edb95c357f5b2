//! Callers that embed in a closed loop: each calls again as soon as it has its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::future::try_join_all;
use ml_client::Client;
use serde::{Deserialize, Serialize};

use crate::cpu;
use crate::start::Start;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    endpoint: String,
    model: String,
    /// Used in turn, starting over after the last.
    texts: Vec<String>,
    callers: usize,
    /// Texts in a call.
    batch: usize,
    /// No call starts later than this, but each caller makes at least one.
    seconds: f64,
    /// Connections shared by the callers.
    connections: usize,
}

#[derive(Serialize)]
pub struct Outcome {
    /// From the moment all callers were connected until the last answer.
    seconds: f64,
    client_cpu_seconds: f64,
    /// Of each call.
    latencies: Vec<f64>,
    /// Length of a vector.
    dimensions: usize,
}

struct Callers {
    plan: Plan,
    next_text: AtomicUsize,
    start: Start,
}

pub async fn run(plan: Plan) -> anyhow::Result<Outcome> {
    anyhow::ensure!(
        plan.connections > 0 && plan.callers > 0 && plan.batch > 0 && !plan.texts.is_empty(),
        "callers, connections, batch and texts must not be 0 or empty"
    );
    let connecting = (0..plan.connections).map(|_| Client::connect(&plan.endpoint));
    let connections = try_join_all(connecting).await?;
    let callers = Arc::new(Callers {
        next_text: AtomicUsize::new(0),
        start: Start::new(plan.callers),
        plan,
    });
    let tasks: Vec<_> = connections
        .iter()
        .cycle()
        .take(callers.plan.callers)
        .map(|client| tokio::spawn(one(Arc::clone(&callers), client.clone())))
        .collect();
    let mut outcome = Outcome {
        seconds: 0.0,
        client_cpu_seconds: 0.0,
        latencies: Vec::new(),
        dimensions: 0,
    };
    for task in tasks {
        let (latencies, dimensions) = task.await??;
        outcome.latencies.extend(latencies);
        outcome.dimensions = dimensions;
    }
    let began = callers.start.began().context("there were no callers")?;
    outcome.seconds = began.time.elapsed().as_secs_f64();
    outcome.client_cpu_seconds = cpu::seconds() - began.cpu_seconds;
    Ok(outcome)
}

async fn one(callers: Arc<Callers>, client: Client) -> anyhow::Result<(Vec<f64>, usize)> {
    let plan = &callers.plan;
    let end = callers.start.all().await.time + Duration::from_secs_f64(plan.seconds);
    let mut latencies = Vec::new();
    loop {
        let first = callers.next_text.fetch_add(plan.batch, Ordering::Relaxed);
        let texts = (first..first + plan.batch).map(|place| &plan.texts[place % plan.texts.len()]);
        let begun = Instant::now();
        let vectors = client.embed(&plan.model, texts).await?;
        latencies.push(begun.elapsed().as_secs_f64());
        if Instant::now() >= end {
            return Ok((latencies, vectors[0].len()));
        }
    }
}
