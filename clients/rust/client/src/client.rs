//! The connection, and the calls that have one answer.

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

/// Largest message sent or received, in bytes: as large as the services take and send by default.
///
/// tonic's own default for what is received is 4 MiB, which some 2,700 embeddings of 384 numbers
/// exceed, or a mask of a 4-megapixel frame.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// An address such as `http://localhost:50051` with the settings that [`Client::connect`] uses: 5 s
/// for the connection, and pings that find out within 40 s that the other side is gone.
///
/// Change them, then hand [`Client::from_channel`] what `connect` or `connect_lazy` give.
///
/// # Errors
///
/// [`Error::Transport`]: it is not an address.
pub fn endpoint(address: impl Into<String>) -> Result<Endpoint> {
    Ok(Endpoint::from_shared(address.into())?
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true))
}

/// A connection to the services. Clones share it, and calls at once are what it is for.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    max_message_bytes: usize,
}

impl Client {
    /// Connects now. Afterwards a lost connection is made anew by the next call.
    ///
    /// # Errors
    ///
    /// [`Error::Transport`]: it is not an address, or nobody listens there.
    pub async fn connect(address: impl Into<String>) -> Result<Self> {
        Ok(Self::from_channel(endpoint(address)?.connect().await?))
    }

    /// Connects with the first call, which fails with `UNAVAILABLE` where nobody listens. Needs a
    /// tokio runtime around it.
    ///
    /// # Errors
    ///
    /// [`Error::Transport`]: it is not an address.
    pub fn connect_lazy(address: impl Into<String>) -> Result<Self> {
        Ok(Self::from_channel(endpoint(address)?.connect_lazy()))
    }

    /// Uses a channel of your own, for TLS or other settings.
    #[must_use]
    pub fn from_channel(channel: Channel) -> Self {
        let max_message_bytes = MAX_MESSAGE_BYTES;
        Self {
            channel,
            max_message_bytes,
        }
    }

    /// Sets the largest message sent or received, instead of [`MAX_MESSAGE_BYTES`].
    #[must_use]
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = bytes;
        self
    }

    /// The stub of `ml.ModelManagementService`.
    #[must_use]
    pub fn models(&self) -> ModelManagementServiceClient<Channel> {
        ModelManagementServiceClient::new(self.channel.clone())
            .max_decoding_message_size(self.max_message_bytes)
            .max_encoding_message_size(self.max_message_bytes)
    }

    /// The stub of `ml.TransformersService`.
    #[must_use]
    pub fn text(&self) -> TransformersServiceClient<Channel> {
        TransformersServiceClient::new(self.channel.clone())
            .max_decoding_message_size(self.max_message_bytes)
            .max_encoding_message_size(self.max_message_bytes)
    }

    /// The stub of `ml.MediapipeService`.
    #[must_use]
    pub fn vision(&self) -> MediapipeServiceClient<Channel> {
        MediapipeServiceClient::new(self.channel.clone())
            .max_decoding_message_size(self.max_message_bytes)
            .max_encoding_message_size(self.max_message_bytes)
    }

    /// Loads a model and waits until it serves, which takes as long as fetching and converting do.
    /// For load options, call the stub.
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: the services say why not.
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

    /// Takes a model out of memory.
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: the services say why not.
    pub async fn unload(&self, model: impl Into<String>) -> Result<()> {
        let model_id = model.into();
        let request = UnloadModelRequest { model_id };
        self.models().unload_model(request).await?;
        Ok(())
    }

    /// The models that are in memory now.
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: the services say why not.
    pub async fn loaded(&self) -> Result<Vec<LoadedModelInfo>> {
        let answer = self.models().get_loaded_models(EmptyRequest {}).await?;
        Ok(answer.into_inner().models)
    }

    /// One vector for each text, in the order of the texts.
    ///
    /// One call takes 2,048 texts by default; for more, use the stub's `stream_embeddings`.
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: the services say why not; [`Error::Incomplete`]: vectors are missing.
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

    /// The faces in a picture, a file of the format "jpeg", "png" or "webp".
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: the services say why not.
    pub async fn detect_faces(
        &self,
        picture: impl Into<Bytes>,
        format: impl Into<String>,
    ) -> Result<Vec<FaceDetection>> {
        let request = image_request(picture, format);
        let answer = self.vision().detect_faces(request).await?;
        Ok(answer.into_inner().faces)
    }

    /// The hands in a picture, and their gestures; as [`Client::detect_faces`].
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: the services say why not.
    pub async fn detect_hands(
        &self,
        picture: impl Into<Bytes>,
        format: impl Into<String>,
    ) -> Result<Vec<HandDetection>> {
        let request = image_request(picture, format);
        let answer = self.vision().detect_hands(request).await?;
        Ok(answer.into_inner().hands)
    }

    /// The body poses in a picture; as [`Client::detect_faces`].
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: the services say why not.
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
