//! Which model is in force: the flag's, else the one that the database was switched to, else that of the
//! configuration.
use super::{Engine, EngineError, Setup};
use crate::{
    config::{Config, Origin},
    store::ActiveModel,
};

/// How texts are embedded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelChoice {
    /// The embedding profile that runs the model.
    pub profile: String,
    /// The model, as `model_name` in the configuration.
    pub model: String,
}

/// Who named the profile and the model of the configuration.
#[derive(Clone, Debug)]
pub struct ModelOrigins {
    /// Of `ai.embedding.profile`.
    pub profile: Origin,
    /// Of `ai.embedding.model_name`.
    pub model: Origin,
}

impl Default for ModelOrigins {
    fn default() -> Self {
        Self { profile: Origin::Default, model: Origin::Default }
    }
}

impl From<&ActiveModel> for ModelChoice {
    fn from(active: &ActiveModel) -> Self {
        Self { profile: active.profile.clone(), model: active.model.clone() }
    }
}

impl Setup {
    /// What is in force where the database was switched to `active`. A profile that the user has
    /// named says how to run the model, so it stays.
    pub(super) fn choice(&self, active: Option<&ActiveModel>) -> ModelChoice {
        let (settings, origins) = (&self.config.ai.embedding, &self.origins);
        let mut choice =
            ModelChoice { profile: settings.profile.clone(), model: settings.model_name.clone() };
        if let Some(active) = active {
            if origins.profile == Origin::Default {
                choice.profile.clone_from(&active.profile);
            }
            if origins.model != Origin::Flag {
                choice.model.clone_from(&active.model);
            }
        }
        choice
    }

    /// The configuration with another model in it.
    pub(super) fn config_with(&self, choice: &ModelChoice) -> Config {
        let mut config = self.config.clone();
        config.ai.embedding.profile.clone_from(&choice.profile);
        config.ai.embedding.model_name.clone_from(&choice.model);
        config
    }
}

impl Engine {
    /// The model in force. It changes when another process switches.
    ///
    /// # Errors
    /// What the store says.
    pub fn model(&self) -> Result<ModelChoice, EngineError> {
        Ok(self.setup.choice(self.store.active_model()?.as_ref()))
    }

    /// What to tell a user whose configuration names another model than the one that the database was
    /// switched to.
    ///
    /// # Errors
    /// What the store says.
    pub fn overruled_model(&self) -> Result<Option<String>, EngineError> {
        let (named, origin) = (&self.setup.config.ai.embedding.model_name, &self.setup.origins.model);
        let Some(active) = self.store.active_model()? else { return Ok(None) };
        if matches!(origin, Origin::Default | Origin::Flag) || active.model == *named {
            return Ok(None);
        }
        Ok(Some(format!(
            "{origin} names the model {named}, but this data folder was switched to {}, which answers; \
             `magray --model {named} reembed` switches to the other",
            active.model
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::SpaceId;

    fn choice(profile: Origin, model: Origin, active: Option<(&str, &str)>) -> (String, String) {
        let mut config = Config::load(None, std::iter::empty(), &[]).unwrap().config;
        config.ai.embedding.profile = "mine".to_owned();
        config.ai.embedding.model_name = "small".to_owned();
        let setup = Setup {
            config,
            origins: ModelOrigins { profile, model },
            data_dir: "nowhere".into(),
            plugin_dirs: Vec::new(),
            project: None,
            executable: None,
        };
        let active = active.map(|(profile, model)| ActiveModel {
            profile: profile.to_owned(),
            model: model.to_owned(),
            space: SpaceId(1),
        });
        let ModelChoice { profile, model } = setup.choice(active.as_ref());
        (profile, model)
    }

    #[test]
    fn the_flag_wins_over_the_database_and_that_over_the_configuration() {
        let env = || Origin::Env("X".to_owned());
        let is = |found: (String, String), profile: &str, model: &str| {
            assert_eq!((found.0.as_str(), found.1.as_str()), (profile, model));
        };
        let active = Some(("theirs", "large"));
        is(choice(Origin::Default, Origin::Default, None), "mine", "small");
        is(choice(Origin::Default, Origin::Default, active), "theirs", "large");
        is(choice(env(), env(), active), "mine", "large");
        is(choice(Origin::Flag, Origin::Default, active), "mine", "large");
        is(choice(Origin::Default, Origin::Flag, active), "theirs", "small");
        is(choice(Origin::Flag, Origin::Flag, active), "mine", "small");
    }
}
