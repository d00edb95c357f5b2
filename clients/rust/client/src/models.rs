//! The state of models: what is in memory, on its way there, and why something is not.

use std::collections::BTreeMap;

use futures_util::{Stream, TryStreamExt, stream};

use crate::Client;
use crate::error::Result;
use crate::proto::{ListModelsRequest, ModelStatus, WatchModelsRequest, WatchModelsResponse};

impl Client {
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
