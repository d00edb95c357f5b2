//! The state of models: what is in memory, on its way there, and why something is not.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{Stream, TryStreamExt, stream};

use crate::Client;
use crate::error::Result;
use crate::proto::{
    ListModelsRequest, LoadModelRequest, LoadModelResponse, ModelStatus, WatchModelsRequest,
    WatchModelsResponse,
};

/// A request of [`Client::load_model`]: what a model is for, how it is run, and how long it stays.
///
/// What is not set is as it was, or as the services are set up.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use ml_client::{Evict, Load};
///
/// let load = Load::new("HuggingFaceTB/SmolLM2-135M-Instruct")
///     .pipeline_type("text-generation")
///     .option("dtype", "int8")
///     .keep_alive(Some(Duration::from_secs(600)))
///     .evict(Evict::Forget)
///     .aliases(["chat", "small"]);
/// assert_eq!(load.request().options["keep_alive"], "600");
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use]
pub struct Load(LoadModelRequest);

/// Whether a model is taken out of memory to make room for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Evict {
    /// It may be, the least recently used first; it stays desired.
    #[default]
    LeastRecentlyUsed,
    /// It may not.
    Never,
    /// It may be, and then it is no longer desired.
    Forget,
}

impl Load {
    /// A load of a model: "org/name".
    pub fn new(model: impl Into<String>) -> Self {
        Self(LoadModelRequest {
            model_id: model.into(),
            ..Default::default()
        })
    }

    /// What the model is for, such as "text-generation"; otherwise its files say it.
    pub fn pipeline_type(mut self, name: impl Into<String>) -> Self {
        self.0.pipeline_type = name.into();
        self
    }

    /// A kind of model, such as "florence2", or a class, such as "`LlamaForCausalLM`": it goes before
    /// the pipeline type.
    pub fn architecture(mut self, name: impl Into<String>) -> Self {
        self.0.architecture = name.into();
        self
    }

    /// A load option by its name, such as "dtype", "engine", "device" or "revision".
    pub fn option(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.options.insert(name.into(), value.into());
        self
    }

    /// Whether it is never taken out of memory unasked.
    pub fn pinned(self, pinned: bool) -> Self {
        self.option("pin", pinned.to_string())
    }

    /// So long after its last call it is taken out of memory; None is never.
    pub fn keep_alive(self, time: Option<Duration>) -> Self {
        let seconds = time.map_or(-1.0, |time| time.as_secs_f64());
        self.option("keep_alive", seconds.to_string())
    }

    /// Whether it is taken out of memory to make room for others.
    pub fn evict(self, evict: Evict) -> Self {
        let name = match evict {
            Evict::LeastRecentlyUsed => "lru",
            Evict::Never => "none",
            Evict::Forget => "forget",
        };
        self.option("evict", name)
    }

    /// A model with a higher one stays in memory longer.
    pub fn priority(self, priority: i32) -> Self {
        self.option("priority", priority.to_string())
    }

    /// Other names that calls may use.
    pub fn aliases<T: Into<String>>(self, names: impl IntoIterator<Item = T>) -> Self {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        self.option("aliases", names.join(","))
    }

    /// The call returns at once, and the load goes on; [`Client::watch`] shows how.
    pub fn in_background(mut self) -> Self {
        self.0.wait = Some(false);
        self
    }

    /// The request as it is sent.
    #[must_use]
    pub fn request(&self) -> &LoadModelRequest {
        &self.0
    }
}

impl Client {
    /// Loads a model as [`Load`] says, and waits until it is ready if that says nothing else. For a
    /// model that is loaded, it changes how long it stays in memory and its other names.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use ml_client::Load;
    ///
    /// # async fn run(client: ml_client::Client) -> Result<(), ml_client::Error> {
    /// let load = Load::new("Qwen/Qwen3-0.6B").option("dtype", "int8").pinned(true);
    /// let loaded = client.load_model(load).await?;
    /// println!("{} MiB of weights", loaded.weights_mb);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Call`](crate::Error::Call): the call ended with an error status.
    pub async fn load_model(&self, load: Load) -> Result<LoadModelResponse> {
        Ok(self.models().load_model(load.0).await?.into_inner())
    }

    /// Every model that is in memory, being loaded, failed, or desired, ordered by id.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # async fn run(client: ml_client::Client) -> Result<(), ml_client::Error> {
    /// for model in client.list().await? {
    ///     println!("{}: {:?} {}", model.model_id, model.state(), model.reason);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Call`](crate::Error::Call): the call ended with an error status.
    pub async fn list(&self) -> Result<Vec<ModelStatus>> {
        let answer = self.models().list_models(ListModelsRequest {}).await?;
        Ok(answer.into_inner().models)
    }

    /// What [`Client::list`] says, now and whenever it changes.
    ///
    /// Each item has all models. The stream ends with an error when the service restarts, or after
    /// its longest life: then watch again. Dropping it ends the watch.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use futures_util::TryStreamExt;
    ///
    /// # async fn run(client: ml_client::Client) -> Result<(), ml_client::Error> {
    /// let mut watch = std::pin::pin!(client.watch().await?);
    /// while let Some(models) = watch.try_next().await? {
    ///     for model in models {
    ///         println!("{}: {} of {} bytes", model.model_id, model.bytes_fetched, model.bytes_total);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Call`](crate::Error::Call): the call ended with an error status.
    pub async fn watch(
        &self,
    ) -> Result<impl Stream<Item = Result<Vec<ModelStatus>>> + Send + use<>> {
        let request = WatchModelsRequest::default();
        let changes = self.models().watch_models(request).await?.into_inner();
        let state = (changes, BTreeMap::new());
        Ok(stream::try_unfold(
            state,
            |(mut changes, mut models)| async move {
                let Some(change) = changes.try_next().await? else {
                    return Ok(None);
                };
                apply(change, &mut models);
                let all = models.values().cloned().collect();
                Ok(Some((all, (changes, models))))
            },
        ))
    }
}

/// Brings the models up to date with one response of a watch.
fn apply(change: WatchModelsResponse, models: &mut BTreeMap<String, ModelStatus>) {
    if change.complete {
        models.clear();
    }
    for id in &change.removed {
        models.remove(id);
    }
    for model in change.models {
        models.insert(model.model_id.clone(), model);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(id: &str, fetched: i64) -> ModelStatus {
        ModelStatus {
            model_id: id.into(),
            bytes_fetched: fetched,
            ..Default::default()
        }
    }

    #[test]
    fn options_are_written_as_the_service_reads_them() {
        let load = Load::new("org/name")
            .pinned(true)
            .keep_alive(None)
            .evict(Evict::Never)
            .priority(-2)
            .aliases(["a", "b"])
            .in_background();
        let options: BTreeMap<_, _> = load.request().options.clone().into_iter().collect();
        let expected = [
            ("aliases", "a,b"),
            ("evict", "none"),
            ("keep_alive", "-1"),
            ("pin", "true"),
            ("priority", "-2"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(options, BTreeMap::from(expected));
        assert_eq!(load.request().wait, Some(false));
    }

    #[test]
    fn changes_are_merged() {
        let mut models = BTreeMap::from([("old".into(), model("old", 1))]);
        let complete = WatchModelsResponse {
            models: vec![model("a", 1), model("b", 1)],
            complete: true,
            ..Default::default()
        };
        apply(complete, &mut models);
        assert_eq!(models.keys().collect::<Vec<_>>(), ["a", "b"]);
        let change = WatchModelsResponse {
            models: vec![model("b", 2)],
            removed: vec!["a".into()],
            ..Default::default()
        };
        apply(change, &mut models);
        assert_eq!(models.into_values().collect::<Vec<_>>(), [model("b", 2)]);
    }
}
