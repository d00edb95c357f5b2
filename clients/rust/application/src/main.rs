//! Plays the calls of the Rust application: `application < PLAN`.
//!
//! A plan is JSON ([`Plan`]), and so is what the program saw ([`Seen`]), on stdout. As the
//! application does, it connects once, when it starts, sets no deadline, no metadata and no limits,
//! never tries again, and drops a stream at its last message without reading the trailers.

use std::io::{stdin, stdout};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tonic::Status;
use tonic::transport::Channel;

mod proto {
    #![allow(missing_docs, clippy::pedantic)]
    tonic::include_proto!("ml");
}

use proto::mediapipe_service_client::MediapipeServiceClient;
use proto::model_management_service_client::ModelManagementServiceClient;
use proto::transformers_service_client::TransformersServiceClient;
use proto::{
    ChatMessage, ChatRequest, EmptyRequest, GenerateEmbeddingsRequest, ImageRequest,
    LoadModelRequest, TextRequest, UnloadModelRequest,
};

/// The new tokens that it asks for, and the top-p that it always sends.
const MAX_LENGTH: i32 = 512;
const TOP_P: f32 = 0.9;
const TEMPERATURE: f32 = 0.7;

/// A model as it is asked for; `architecture` is the hint, which may be empty.
#[derive(Deserialize)]
struct Model {
    id: String,
    pipeline_type: String,
    architecture: String,
}

/// What to do: load all models, use some of them, and unload what was loaded.
#[derive(Deserialize)]
struct Plan {
    endpoint: String,
    models: Vec<Model>,
    /// The model that generates text and chats; none if it is empty.
    language: String,
    /// The model of the embeddings; none if it is empty.
    embeddings: String,
}

/// How a load ended: its message, and the code of its error, 0 for none.
#[derive(Serialize)]
struct Load {
    success: bool,
    message: String,
    code: i32,
    ram_mb: i64,
}

/// What arrived of a stream.
#[derive(Serialize)]
struct Answer {
    text: String,
    messages: usize,
    done: bool,
    /// Of the last message.
    tokens: i32,
    finish_reason: String,
}

/// What the program saw, in the order of the plan.
#[derive(Serialize)]
struct Seen {
    loads: Vec<Load>,
    /// The id and the type of each model in memory.
    loaded: Vec<(String, String)>,
    generated: Option<Answer>,
    chats: Vec<Answer>,
    embeddings: Vec<usize>,
    /// The code of a picture that is none.
    no_picture: i32,
    unloads: Vec<bool>,
    left: Vec<(String, String)>,
}

/// The three clients, each with a connection of its own.
struct Application {
    models: ModelManagementServiceClient<Channel>,
    text: TransformersServiceClient<Channel>,
    vision: MediapipeServiceClient<Channel>,
}

impl Application {
    /// Connects at once: a service that refuses is off for good.
    async fn start(endpoint: &str) -> Result<Self> {
        let endpoint = endpoint.to_owned();
        Ok(Self {
            models: ModelManagementServiceClient::connect(endpoint.clone()).await?,
            text: TransformersServiceClient::connect(endpoint.clone()).await?,
            vision: MediapipeServiceClient::connect(endpoint).await?,
        })
    }

    async fn load(&mut self, model: &Model) -> Load {
        let request = LoadModelRequest {
            model_id: model.id.clone(),
            pipeline_type: model.pipeline_type.clone(),
            architecture: model.architecture.clone(),
            ..Default::default()
        };
        match self.models.load_model(request).await {
            Ok(response) => {
                let response = response.into_inner();
                Load {
                    success: response.success,
                    message: response.message,
                    code: 0,
                    ram_mb: response.ram_allocated_mb,
                }
            }
            Err(status) => Load {
                success: false,
                message: status.message().to_owned(),
                code: status.code() as i32,
                ram_mb: 0,
            },
        }
    }

    async fn loaded(&mut self) -> Result<Vec<(String, String)>, Status> {
        let response = self.models.get_loaded_models(EmptyRequest {}).await?;
        let models = response.into_inner().models.into_iter();
        Ok(models
            .map(|model| (model.model_id, model.pipeline_type))
            .collect())
    }

    async fn generate_text(&mut self, model: &str, prompt: &str) -> Result<Answer, Status> {
        let request = TextRequest {
            prompt: prompt.to_owned(),
            model: model.to_owned(),
            max_length: MAX_LENGTH,
            temperature: TEMPERATURE,
            top_p: TOP_P,
        };
        let mut stream = self.text.generate_text(request).await?.into_inner();
        let mut answer = Answer::empty();
        while let Some(message) = stream.message().await? {
            answer.text += &message.text;
            answer.messages += 1;
            answer.tokens = message.tokens_generated;
            answer.done = message.done;
            if message.done {
                break;
            }
        }
        Ok(answer)
    }

    async fn chat(&mut self, model: &str, words: &str) -> Result<Answer, Status> {
        let message = |role: &str, content: &str| ChatMessage {
            role: role.to_owned(),
            content: content.to_owned(),
        };
        let request = ChatRequest {
            messages: vec![
                message("system", "You answer in one word."),
                message("user", words),
            ],
            model: model.to_owned(),
            temperature: TEMPERATURE,
        };
        let mut stream = self.text.chat_completion(request).await?.into_inner();
        let mut answer = Answer::empty();
        while let Some(message) = stream.message().await? {
            answer.text += &message.content;
            answer.messages += 1;
            answer.done = message.done;
            if message.done {
                answer.finish_reason = message.finish_reason;
                break;
            }
        }
        Ok(answer)
    }

    async fn embed(&mut self, model: &str, texts: &[&str]) -> Result<Vec<usize>, Status> {
        let request = GenerateEmbeddingsRequest {
            texts: texts.iter().map(|&text| text.to_owned()).collect(),
            model: model.to_owned(),
        };
        let response = self.text.generate_embeddings(request).await?.into_inner();
        let vectors = response.embeddings.iter();
        Ok(vectors.map(|vector| vector.values.len()).collect())
    }

    /// The code for bytes that are no picture.
    async fn no_picture(&mut self) -> i32 {
        let request = ImageRequest {
            image_data: b"no picture".to_vec(),
            format: "jpeg".to_owned(),
            ..Default::default()
        };
        match self.vision.detect_faces(request).await {
            Ok(_) => 0,
            Err(status) => status.code() as i32,
        }
    }

    async fn unload(&mut self, model: &Model) -> Result<bool, Status> {
        let request = UnloadModelRequest {
            model_id: model.id.clone(),
        };
        Ok(self
            .models
            .unload_model(request)
            .await?
            .into_inner()
            .success)
    }
}

impl Answer {
    fn empty() -> Self {
        Self {
            text: String::new(),
            messages: 0,
            done: false,
            tokens: 0,
            finish_reason: String::new(),
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let plan: Plan = serde_json::from_reader(stdin())?;
    let mut application = Application::start(&plan.endpoint).await?;
    let mut loads = Vec::new();
    for model in &plan.models {
        loads.push(application.load(model).await);
    }
    let loaded = application.loaded().await?;
    let mut generated = None;
    let mut chats = Vec::new();
    if !plan.language.is_empty() {
        generated = Some(application.generate_text(&plan.language, "Snow is").await?);
        // On the connection whose last stream was dropped.
        for _ in 0..2 {
            chats.push(application.chat(&plan.language, "What is snow?").await?);
        }
    }
    let mut embeddings = Vec::new();
    if !plan.embeddings.is_empty() {
        let texts = ["one sentence", "and another"];
        embeddings = application.embed(&plan.embeddings, &texts).await?;
    }
    let no_picture = application.no_picture().await;
    let mut unloads = Vec::new();
    for (model, load) in plan.models.iter().zip(&loads) {
        if load.success {
            unloads.push(application.unload(model).await?);
        }
    }
    let left = application.loaded().await?;
    let seen = Seen {
        loads,
        loaded,
        generated,
        chats,
        embeddings,
        no_picture,
        unloads,
        left,
    };
    serde_json::to_writer(stdout(), &seen)?;
    Ok(())
}
