//! A tour of the services: loads two models, embeds, chats, finds a face, and unloads.
//!
//! `cargo run --example tour -- --picture ../../../models/pictures/astronaut.png`

use std::fs;
use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use futures_util::TryStreamExt;
use ml_client::Client;
use ml_client::proto::{ChatMessage, ChatRequest};

const SENTENCES: [&str; 3] = [
    "A man is eating food.",
    "Someone is having a meal.",
    "The rocket leaves the launch pad.",
];

/// Loads two models, embeds, chats, finds a face, and unloads.
#[derive(Parser)]
struct Options {
    /// Address of the services.
    #[arg(long, default_value = "http://localhost:50051")]
    endpoint: String,
    /// The chat model.
    #[arg(long, default_value = "HuggingFaceTB/SmolLM2-135M-Instruct")]
    chat_model: String,
    /// The embedding model.
    #[arg(long, default_value = "sentence-transformers/all-MiniLM-L6-v2")]
    embedding_model: String,
    /// The question for the chat model.
    #[arg(long, default_value = "What is the capital of France?")]
    question: String,
    /// A picture with a face: PNG, JPEG or WebP.
    #[arg(long)]
    picture: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let client = Client::connect(&options.endpoint).await?;

    load(&client, &options.chat_model, "text-generation").await?;
    load(&client, &options.embedding_model, "feature-extraction").await?;
    embed(&client, &options.embedding_model).await?;
    chat(&client, &options).await?;
    detect(&client, &options).await?;
    for model in [&options.chat_model, &options.embedding_model] {
        client.unload(model).await?;
        println!("unloaded {model}");
    }
    Ok(())
}

async fn load(client: &Client, model: &str, pipeline_type: &str) -> anyhow::Result<()> {
    let loaded = client.load(model, pipeline_type).await?;
    println!("loaded {model}: {} MiB", loaded.ram_allocated_mb);
    Ok(())
}

async fn embed(client: &Client, model: &str) -> anyhow::Result<()> {
    let vectors = client.embed(model, SENTENCES).await?;
    println!(
        "{} embeddings of length {}",
        vectors.len(),
        vectors[0].len()
    );
    for (sentence, vector) in SENTENCES.iter().zip(&vectors) {
        println!("{:.3} {sentence}", cosine(&vectors[0], vector));
    }
    Ok(())
}

async fn chat(client: &Client, options: &Options) -> anyhow::Result<()> {
    println!("user: {}", options.question);
    print!("assistant: ");
    let mut answer = client
        .chat(ChatRequest {
            model: options.chat_model.clone(),
            messages: vec![ChatMessage::user(&options.question)],
            temperature: Some(0.0),
            ..Default::default()
        })
        .await?;
    while let Some(text) = answer.try_next().await? {
        print!("{text}");
        stdout().flush()?;
    }
    let finish = answer.finish().context("a complete answer has a finish")?;
    println!(
        "\n{} tokens, {}",
        finish.usage.generated_tokens, finish.reason
    );
    Ok(())
}

async fn detect(client: &Client, options: &Options) -> anyhow::Result<()> {
    let extension = options.picture.extension().unwrap_or_default();
    let format = extension.to_string_lossy().to_lowercase();
    let picture = fs::read(&options.picture)?;
    let faces = client.detect_faces(picture, format).await?;
    println!("faces: {}", faces.len());
    for face in faces {
        let (x, y) = (face.x + face.width / 2.0, face.y + face.height / 2.0);
        println!(
            "a face around {x:.2}, {y:.2} with confidence {:.2}",
            face.confidence
        );
    }
    Ok(())
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
