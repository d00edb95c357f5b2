//! The connection, and the calls with a single response.

use std::time::Duration;

use bytes::Bytes;
use tonic::transport::{Channel, Endpoint};

use crate::error::{Error, Result};
use crate::proto::mediapipe_service_client::MediapipeServiceClient;
use crate::proto::model_management_service_client::ModelManagementServiceClient;
use crate::proto::transformers_service_client::TransformersServiceClient;
use crate::proto::{
    EmptyRequest, FaceDetection, GenerateEmbeddingsRequest, HandDetection, ImageRequest,
    LoadModelRequest, LoadModelResponse, LoadedModelInfo, PoseDetection, UnloadModelRequest,
};

/// Largest message sent or received, in bytes: the default limit of the services.
///
/// tonic's own default for received messages is 4 MiB; about 2,700 embeddings of 384 numbers exceed
/// it, and so does the mask of a frame of more than 4 megapixels.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// An endpoint for an address such as `http://localhost:50051`, with the settings that
/// [`Client::connect`] uses: a connect timeout of 5 s, and pings that notice within 40 s that the
/// server is gone.
///
/// Change its settings, connect, and pass the channel to [`Client::from_channel`].
///
/// # Example
///
/// ```no_run
/// use std::time::Duration;
/// use ml_client::{Client, endpoint};
///
/// # async fn run() -> Result<(), ml_client::Error> {
/// let endpoint = endpoint("http://localhost:50051")?.timeout(Duration::from_secs(30));
/// let client = Client::from_channel(endpoint.connect().await?);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`Error::Transport`]: the address is not valid.
pub fn endpoint(address: impl Into<String>) -> Result<Endpoint> {
    Ok(Endpoint::from_shared(address.into())?
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true))
}

/// A connection to the services. Clones share it; make as many calls at once as you like.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    max_message_bytes: usize,
}

impl Client {
    /// Connects now. If the connection is lost later, the next call connects again.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use ml_client::Client;
    ///
    /// # async fn run() -> Result<(), ml_client::Error> {
    /// let client = Client::connect("http://localhost:50051").await?;
    /// for model in client.loaded().await? {
    ///     println!("{}: {} MiB", model.model_id, model.ram_mb);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Transport`]: the address is not valid, or nothing listens there.
    pub async fn connect(address: impl Into<String>) -> Result<Self> {
        Ok(Self::from_channel(endpoint(address)?.connect().await?))
    }

    /// Connects on the first call, which fails with `UNAVAILABLE` if nothing listens. Must be called
    /// within a tokio runtime.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use ml_client::Client;
    ///
    /// # async fn run() -> Result<(), ml_client::Error> {
    /// let client = Client::connect_lazy("http://localhost:50051")?; // the services may start later
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Transport`]: the address is not valid.
    pub fn connect_lazy(address: impl Into<String>) -> Result<Self> {
        Ok(Self::from_channel(endpoint(address)?.connect_lazy()))
    }

    /// Uses a channel of your own, for TLS or other settings; [`endpoint`] has an example.
    #[must_use]
    pub fn from_channel(channel: Channel) -> Self {
        let max_message_bytes = MAX_MESSAGE_BYTES;
        Self {
            channel,
            max_message_bytes,
        }
    }

    /// Sets the largest message sent or received, in bytes, instead of [`MAX_MESSAGE_BYTES`].
    ///
    /// # Example
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), ml_client::Error> {
    /// let client = ml_client::Client::connect("http://localhost:50051").await?;
    /// let client = client.max_message_bytes(16 << 20);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = bytes;
        self
    }

    /// The stub of `ml.ModelManagementService`, for the calls without a method here.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use ml_client::proto::ModelFileRequest;
    ///
    /// # async fn run(client: ml_client::Client) -> Result<(), ml_client::Error> {
    /// let request = ModelFileRequest {
    ///     model_id: "HuggingFaceTB/SmolLM2-135M-Instruct".into(),
    ///     file_path: "config.json".into(),
    ///     ..Default::default()
    /// };
    /// let mut chunks = client.models().get_model_file(request).await?.into_inner();
    /// while let Some(chunk) = chunks.message().await? {
    ///     println!("{} of {} bytes", chunk.data.len(), chunk.total_size);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn models(&self) -> ModelManagementServiceClient<Channel> {
        ModelManagementServiceClient::new(self.channel.clone())
            .max_decoding_message_size(self.max_message_bytes)
            .max_encoding_message_size(self.max_message_bytes)
    }

    /// The stub of `ml.TransformersService`, for `Infer`, `TranscribeStream` and the rest.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use ml_client::proto::{ImageData, InferRequest, infer_request::Input};
    ///
    /// # async fn run(client: ml_client::Client, jpeg: Vec<u8>) -> Result<(), ml_client::Error> {
    /// let request = InferRequest {
    ///     model: "google/vit-base-patch16-224".into(),
    ///     input: Some(Input::Image(ImageData { data: jpeg.into() })),
    ///     ..Default::default()
    /// };
    /// let response = client.text().infer(request).await?.into_inner();
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn text(&self) -> TransformersServiceClient<Channel> {
        TransformersServiceClient::new(self.channel.clone())
            .max_decoding_message_size(self.max_message_bytes)
            .max_encoding_message_size(self.max_message_bytes)
    }

    /// The stub of `ml.MediapipeService`; [`Client::follow`] wraps its streams.
    #[must_use]
    pub fn vision(&self) -> MediapipeServiceClient<Channel> {
        MediapipeServiceClient::new(self.channel.clone())
            .max_decoding_message_size(self.max_message_bytes)
            .max_encoding_message_size(self.max_message_bytes)
    }

    /// Loads a model and waits until it is ready; fetching and converting it may take minutes.
    ///
    /// [`Client::load_model`] takes load options.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # async fn run(client: ml_client::Client) -> Result<(), ml_client::Error> {
    /// let model = "sentence-transformers/all-MiniLM-L6-v2";
    /// let loaded = client.load(model, "feature-extraction").await?;
    /// println!("{} MiB", loaded.ram_allocated_mb);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: the call ended with an error status.
    pub async fn load(
        &self,
        model: impl Into<String>,
        pipeline_type: impl Into<String>,
    ) -> Result<LoadModelResponse> {
        let request = LoadModelRequest {
            model_id: model.into(),
            pipeline_type: pipeline_type.into(),
            ..Default::default()
        };
        Ok(self.models().load_model(request).await?.into_inner())
    }

    /// Removes a model from memory.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # async fn run(client: ml_client::Client) -> Result<(), ml_client::Error> {
    /// client.unload("sentence-transformers/all-MiniLM-L6-v2").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: the call ended with an error status.
    pub async fn unload(&self, model: impl Into<String>) -> Result<()> {
        let model_id = model.into();
        let request = UnloadModelRequest { model_id };
        self.models().unload_model(request).await?;
        Ok(())
    }

    /// The models in memory now.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # async fn run(client: ml_client::Client) -> Result<(), ml_client::Error> {
    /// for model in client.loaded().await? {
    ///     println!("{} ({})", model.model_id, model.pipeline_type);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: the call ended with an error status.
    pub async fn loaded(&self) -> Result<Vec<LoadedModelInfo>> {
        let answer = self.models().get_loaded_models(EmptyRequest {}).await?;
        Ok(answer.into_inner().models)
    }

    /// Embeds texts: one vector for each, in their order.
    ///
    /// A call takes at most 2,048 texts by default; for more, use the stub's `stream_embeddings`.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # async fn run(client: ml_client::Client) -> Result<(), ml_client::Error> {
    /// let model = "sentence-transformers/all-MiniLM-L6-v2";
    /// let vectors = client.embed(model, ["A man is eating.", "A rocket lifts off."]).await?;
    /// assert_eq!(vectors.len(), 2);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: the call ended with an error status; [`Error::Incomplete`]: vectors are
    /// missing.
    pub async fn embed<T: Into<String>>(
        &self,
        model: impl Into<String>,
        texts: impl IntoIterator<Item = T>,
    ) -> Result<Vec<Vec<f32>>> {
        let request = GenerateEmbeddingsRequest {
            model: model.into(),
            texts: texts.into_iter().map(Into::into).collect(),
            ..Default::default()
        };
        let asked = request.texts.len();
        let answer = self.text().generate_embeddings(request).await?.into_inner();
        if answer.embeddings.len() != asked {
            return Err(Error::Incomplete);
        }
        let vectors = answer.embeddings.into_iter();
        Ok(vectors.map(|each| each.values).collect())
    }

    /// Finds the faces in a picture: the bytes of a "jpeg", "png" or "webp" file.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # async fn run(client: ml_client::Client) -> Result<(), ml_client::Error> {
    /// let picture = std::fs::read("team.jpg").expect("the file exists");
    /// for face in client.detect_faces(picture, "jpeg").await? {
    ///     println!("{:.2}, {:.2}: {:.2}", face.x, face.y, face.confidence); // 0 to 1
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: the call ended with an error status.
    pub async fn detect_faces(
        &self,
        picture: impl Into<Bytes>,
        format: impl Into<String>,
    ) -> Result<Vec<FaceDetection>> {
        let request = image_request(picture, format);
        let answer = self.vision().detect_faces(request).await?;
        Ok(answer.into_inner().faces)
    }

    /// Finds the hands in a picture, and their gestures; takes what [`Client::detect_faces`] takes.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # async fn run(client: ml_client::Client) -> Result<(), ml_client::Error> {
    /// let picture = std::fs::read("team.jpg").expect("the file exists");
    /// for hand in client.detect_hands(picture, "jpeg").await? {
    ///     println!("{} hand, {:?}", hand.handedness, hand.gestures);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: the call ended with an error status.
    pub async fn detect_hands(
        &self,
        picture: impl Into<Bytes>,
        format: impl Into<String>,
    ) -> Result<Vec<HandDetection>> {
        let request = image_request(picture, format);
        let answer = self.vision().detect_hands(request).await?;
        Ok(answer.into_inner().hands)
    }

    /// Finds body poses in a picture; takes what [`Client::detect_faces`] takes.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # async fn run(client: ml_client::Client) -> Result<(), ml_client::Error> {
    /// let picture = std::fs::read("team.jpg").expect("the file exists");
    /// for pose in client.detect_pose(picture, "jpeg").await? {
    ///     assert_eq!(pose.landmarks.len(), 33);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: the call ended with an error status.
    pub async fn detect_pose(
        &self,
        picture: impl Into<Bytes>,
        format: impl Into<String>,
    ) -> Result<Vec<PoseDetection>> {
        let request = image_request(picture, format);
        let answer = self.vision().detect_pose(request).await?;
        Ok(answer.into_inner().poses)
    }
}

fn image_request(picture: impl Into<Bytes>, format: impl Into<String>) -> ImageRequest {
    ImageRequest {
        image_data: picture.into(),
        format: format.into(),
        ..Default::default()
    }
}
