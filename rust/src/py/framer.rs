//! `Framer`: messages for transactions of the user's own.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use pyo3::prelude::*;

use super::message::PyMessage;
use crate::publish::framer::Framer;
use crate::receive::attachment::AttachmentTable;
use crate::wire::codec::{Encoded, Limits};
use crate::wire::signature::SigningKey;

/// See `_core.pyi`.
#[pyclass(name = "Framer", frozen, module = "socketio_postgres._core")]
pub struct PyFramer {
    framer: Framer,
    table: String,
}

#[pymethods]
impl PyFramer {
    #[new]
    #[pyo3(signature = (*, channel, table_name, payload_threshold, max_payload, signing_key))]
    fn new(
        channel: String,
        table_name: &str,
        payload_threshold: usize,
        max_payload: usize,
        signing_key: Option<&[u8]>,
    ) -> PyResult<Self> {
        let limits = Limits { payload_threshold_bytes: payload_threshold, max_payload_bytes: max_payload };
        let signing_key = signing_key.map(SigningKey::new).transpose()?;
        let table = AttachmentTable::new(table_name, false)?.quoted().to_owned();
        Ok(Self { framer: Framer { prefix: channel, limits, signing_key }, table })
    }

    #[getter]
    fn table_name(&self) -> &str {
        &self.table
    }

    fn frame(&self, message: &PyMessage) -> PyResult<(String, String, Option<String>)> {
        Ok(match self.framer.frame(&message.0)? {
            (channel, Encoded::Inline(text)) => (channel, text, None),
            (channel, Encoded::Attachment { header, body }) => (channel, header, Some(BASE64.encode(body))),
        })
    }
}
