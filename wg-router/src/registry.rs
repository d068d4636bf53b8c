//! Owns the table of instances of one process: a name means at most one of them. Starts and stops nothing.

use std::collections::BTreeMap;

use crate::instance::{Instance, InstanceId, InstanceName};

/// The instances of one process, by name and by id.
///
/// ```
/// # use wg_router::Registry;
/// let mut registry = Registry::new();
/// let id = registry.add("wg0".parse()?)?;
/// assert_eq!(registry.find(&"wg0".parse()?), Some(id));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Registry {
    by_id: BTreeMap<InstanceId, Instance>,
    by_name: BTreeMap<InstanceName, InstanceId>,
    next: InstanceId,
}

/// Why an instance was not added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// This process already runs an instance of that name.
    #[error("interface {0} already runs in this process")]
    NameTaken(InstanceName),
}

impl Registry {
    /// An empty table.
    pub fn new() -> Self {
        Registry { by_id: BTreeMap::new(), by_name: BTreeMap::new(), next: InstanceId::first() }
    }

    /// Adds an instance and returns its id, which no other instance of this process had or will have.
    pub fn add(&mut self, name: InstanceName) -> Result<InstanceId, RegistryError> {
        if self.by_name.contains_key(&name) {
            return Err(RegistryError::NameTaken(name));
        }
        let id = self.next;
        self.next = id.next();
        self.by_name.insert(name.clone(), id);
        self.by_id.insert(id, Instance::new(id, name));
        Ok(id)
    }

    /// Forgets an instance; its name is free again.
    pub fn remove(&mut self, id: InstanceId) -> Option<Instance> {
        let instance = self.by_id.remove(&id)?;
        self.by_name.remove(instance.name());
        Some(instance)
    }

    /// The instance with this id.
    pub fn instance(&self, id: InstanceId) -> Option<&Instance> {
        self.by_id.get(&id)
    }

    /// The id behind a name.
    pub fn find(&self, name: &InstanceName) -> Option<InstanceId> {
        self.by_name.get(name).copied()
    }

    /// All instances, in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = &Instance> {
        self.by_id.values()
    }

    /// How many instances there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

impl Default for Registry {
    fn default() -> Self {
        Registry::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> InstanceName {
        text.parse().expect("a valid name")
    }

    #[test]
    fn a_name_means_one_instance_until_it_is_removed() {
        let mut registry = Registry::new();
        let first = registry.add(name("wg0")).expect("free");
        let other = registry.add(name("wg1")).expect("free");
        assert_eq!(registry.add(name("wg0")), Err(RegistryError::NameTaken(name("wg0"))));
        assert_eq!(registry.find(&name("wg0")), Some(first));
        assert_eq!(registry.remove(first).map(|gone| gone.name().clone()), Some(name("wg0")));
        assert_eq!(registry.find(&name("wg0")), None);
        assert_eq!(registry.find(&name("wg1")), Some(other));
        assert!(registry.add(name("wg0")).is_ok());
    }

    #[test]
    fn an_id_is_never_used_twice() {
        let mut registry = Registry::new();
        let first = registry.add(name("wg0")).expect("free");
        registry.remove(first);
        let second = registry.add(name("wg0")).expect("free");
        assert_ne!(first, second);
        assert_eq!(registry.instance(first), None);
        assert_eq!(registry.remove(first), None);
        assert_eq!(registry.len(), 1);
    }

    #[test]
    fn instances_are_listed_in_the_order_they_came() {
        let mut registry = Registry::new();
        for text in ["wg9", "wg1", "wg5"] {
            registry.add(name(text)).expect("free");
        }
        let names: Vec<&str> = registry.iter().map(|instance| instance.name().as_str()).collect();
        assert_eq!(names, ["wg9", "wg1", "wg5"]);
        assert!(!registry.is_empty());
    }
}
