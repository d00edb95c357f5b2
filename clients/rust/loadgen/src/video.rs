//! Video streams, as fast as they are answered or at the pace of a camera.

use std::collections::HashMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, future, stream};
use ml_client::proto::VideoFrame;
use ml_client::{Answers, Client, FramePolicy, VideoOptions, VideoTask, tasks};
use serde::{Deserialize, Serialize};
use tokio::sync::Barrier;
use tokio::time::{interval, sleep};

use crate::cpu;

/// The frames and the task that processes them.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    endpoint: String,
    /// The name of the stream's RPC.
    rpc: String,
    /// A file for each frame, sent again and again.
    files: Vec<String>,
    format: String,
    width: i32,
    height: i32,
}

#[derive(Deserialize)]
pub struct Plan {
    source: Source,
    streams: usize,
    /// Largest number of frames in flight in a stream.
    in_flight: usize,
    /// Length of the measured time, which begins after the first answers of all streams.
    seconds: f64,
    /// First answers of each stream that do not count.
    warm_up: usize,
}

#[derive(Serialize)]
pub struct Outcome {
    seconds: f64,
    client_cpu_seconds: f64,
    /// Of the frames answered in the measured time.
    latencies: Vec<f64>,
}

#[derive(Deserialize)]
pub struct PacedPlan {
    source: Source,
    fps: f64,
    frames: usize,
    /// First answers that do not count.
    warm_up: usize,
}

#[derive(Serialize)]
pub struct PacedOutcome {
    /// Age of each answered frame when its answer arrived.
    ages: Vec<f64>,
    client_cpu_seconds: f64,
}

/// Calls a function with the task of the plan's RPC.
macro_rules! for_task {
    ($function:ident, $plan:expr) => {
        for_task!(
            $function, $plan,
            Faces FaceMesh Irises Hands Poses Holistic Objects ObjectTracks Objects3D Selfie Hair
        )
    };
    ($function:ident, $plan:expr, $($task:ident)+) => {
        match $plan.source.rpc.as_str() {
            $(rpc if rpc == tasks::$task::RPC => $function(tasks::$task, $plan).await,)+
            other => anyhow::bail!("there is no RPC {other}"),
        }
    };
}

/// Frames as fast as they are answered. Lines `begin` and `end` on stderr mark the measured time, for
/// the program that measures the other processes.
pub async fn run(plan: Plan) -> anyhow::Result<Outcome> {
    for_task!(saturate, plan)
}

/// One stream at the pace of a camera; the newest frame is processed.
pub async fn run_paced(plan: PacedPlan) -> anyhow::Result<PacedOutcome> {
    for_task!(pace, plan)
}

/// When each frame was sent, by frame number.
#[derive(Default)]
struct Clock(Mutex<HashMap<i32, Instant>>);

impl Clock {
    fn sent(&self, number: i32) {
        let mut sent = self
            .0
            .lock()
            .expect("no thread panics while it holds the lock");
        sent.insert(number, Instant::now());
    }

    fn since(&self, number: i32) -> anyhow::Result<f64> {
        let mut sent = self
            .0
            .lock()
            .expect("no thread panics while it holds the lock");
        let start = sent
            .remove(&number)
            .context("an answer to a frame that was not sent")?;
        Ok(start.elapsed().as_secs_f64())
    }
}

async fn saturate<T: VideoTask>(task: T, plan: Plan) -> anyhow::Result<Outcome> {
    let files = read(&plan.source)?;
    let options = VideoOptions::default().in_flight(plan.in_flight);
    let measure = Arc::new(Measure {
        ready: Barrier::new(plan.streams + 1),
        stop: AtomicBool::new(false),
        warm_up: plan.warm_up,
    });
    let mut streams = Vec::new();
    for _ in 0..plan.streams {
        let client = Client::connect(&plan.source.endpoint).await?;
        let clock = Arc::new(Clock::default());
        let frames = numbered(&plan.source, &files, &clock).take_while({
            let measure = Arc::clone(&measure);
            move |_| future::ready(!measure.stop.load(Ordering::Relaxed))
        });
        let answers = client.follow(task, frames, &options);
        streams.push(tokio::spawn(one::<T>(answers, clock, Arc::clone(&measure))));
    }
    measure.ready.wait().await;
    let (start, cpu) = (Instant::now(), cpu::seconds());
    eprintln!("begin");
    sleep(Duration::from_secs_f64(plan.seconds)).await;
    measure.stop.store(true, Ordering::Relaxed);
    eprintln!("end");
    let seconds = start.elapsed().as_secs_f64();
    let client_cpu_seconds = cpu::seconds() - cpu;
    let mut latencies = Vec::new();
    for stream in streams {
        latencies.extend(stream.await??);
    }
    Ok(Outcome {
        seconds,
        client_cpu_seconds,
        latencies,
    })
}

/// Shared by the streams of a plan.
struct Measure {
    ready: Barrier,
    stop: AtomicBool,
    warm_up: usize,
}

async fn one<T: VideoTask>(
    mut answers: Answers<T::Answer>,
    clock: Arc<Clock>,
    measure: Arc<Measure>,
) -> anyhow::Result<Vec<f64>> {
    let mut latencies = Vec::new();
    let mut number = 0;
    while let Some(answer) = answers.try_next().await? {
        let latency = clock.since(T::frame_number(&answer))?;
        if number == measure.warm_up {
            measure.ready.wait().await;
        } else if number > measure.warm_up && !measure.stop.load(Ordering::Relaxed) {
            latencies.push(latency);
        }
        number += 1;
    }
    Ok(latencies)
}

async fn pace<T: VideoTask>(task: T, plan: PacedPlan) -> anyhow::Result<PacedOutcome> {
    let files = read(&plan.source)?;
    let client = Client::connect(&plan.source.endpoint).await?;
    let clock = Arc::new(Clock::default());
    let camera = interval(Duration::from_secs_f64(1.0 / plan.fps));
    let frames = numbered(&plan.source, &files, &clock).take(plan.frames);
    // A frame is taken after its tick; taken before, it would be one tick old when it is sent.
    let frames = stream::unfold((camera, frames), |(mut camera, mut frames)| async move {
        camera.tick().await;
        Some((frames.next().await?, (camera, frames)))
    });
    let options = VideoOptions::default()
        .in_flight(plan.frames)
        .policy(FramePolicy::Latest);
    let cpu = cpu::seconds();
    let answers = client.follow(task, frames, &options);
    let ages: Vec<f64> = answers
        .map_err(anyhow::Error::from)
        .and_then(|answer| future::ready(clock.since(T::frame_number(&answer))))
        .try_collect()
        .await?;
    Ok(PacedOutcome {
        ages: ages.into_iter().skip(plan.warm_up).collect(),
        client_cpu_seconds: cpu::seconds() - cpu,
    })
}

fn read(source: &Source) -> anyhow::Result<Vec<Bytes>> {
    anyhow::ensure!(!source.files.is_empty(), "there are no frames");
    let files = source.files.iter();
    files
        .map(|path| Ok(fs::read(path).with_context(|| path.clone())?.into()))
        .collect()
}

/// The frames again and again with increasing numbers; the clock starts when one is taken.
fn numbered(
    source: &Source,
    files: &[Bytes],
    clock: &Arc<Clock>,
) -> impl Stream<Item = VideoFrame> + Send + use<> {
    let (source, files, clock) = (source.clone(), files.to_vec(), Arc::clone(clock));
    stream::iter(0..).map(move |number: usize| {
        let frame_number = i32::try_from(number).unwrap_or(i32::MAX);
        clock.sent(frame_number);
        VideoFrame {
            frame_data: files[number % files.len()].clone(),
            format: source.format.clone(),
            width: source.width,
            height: source.height,
            frame_number,
            ..Default::default()
        }
    })
}
