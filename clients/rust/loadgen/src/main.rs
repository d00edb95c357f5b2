//! The load generator of the benchmarks: reads one plan as JSON from stdin, runs it, and writes one
//! result with the raw samples as JSON to stdout. All times are seconds.

mod cpu;
mod embeddings;
mod start;
mod text;
mod video;

use std::io::{Read, stdin, stdout};

use anyhow::Context;
use clap::Parser;
use serde::Deserialize;

/// Runs the plan that stdin holds.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Threads of the client; it shares the machine with what it measures.
    #[arg(long, default_value_t = 1)]
    workers: usize,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Plan {
    Embeddings(embeddings::Plan),
    Text(text::Plan),
    Video(video::Plan),
    PacedVideo(video::PacedPlan),
}

async fn run(plan: Plan) -> anyhow::Result<serde_json::Value> {
    let result = match plan {
        Plan::Embeddings(plan) => serde_json::to_value(embeddings::run(plan).await?),
        Plan::Text(plan) => serde_json::to_value(text::run(plan).await?),
        Plan::Video(plan) => serde_json::to_value(video::run(plan).await?),
        Plan::PacedVideo(plan) => serde_json::to_value(video::run_paced(plan).await?),
    };
    Ok(result?)
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let mut input = String::new();
    stdin().read_to_string(&mut input)?;
    let plan = serde_json::from_str(&input).context("the plan on stdin")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(options.workers)
        .enable_all()
        .build()?;
    // In a task, so that the calls' work is on the worker threads alone.
    let result = runtime.block_on(async { tokio::spawn(run(plan)).await })??;
    serde_json::to_writer(stdout(), &result)?;
    Ok(())
}
