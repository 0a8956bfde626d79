//! `Message`: a cluster message in Python.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use super::convert::{self, Root};
use crate::wire::codec::{self, Encoded, Limits, Received};
use crate::wire::protocol::{Data, Flags, Message, MessageType, NOTIFY_LIMIT_BYTES, Opts, PACKET_EVENT};

/// See `_core.pyi`.
#[pyclass(name = "Message", frozen, module = "socketio_postgres._core")]
pub struct PyMessage(pub Message);

/// Encode `value`, or use `text` from a custom json module.
fn data(value: Option<&Bound<'_, PyAny>>, text: Option<String>, root: Root) -> PyResult<Option<Data>> {
    match (value, text) {
        (Some(_), Some(_)) => Err(PyTypeError::new_err("give a value or its JSON text, not both")),
        (Some(value), None) => Ok(Some(convert::encode(value, root)?)),
        (None, Some(text)) => Ok(Some(convert::json_text(text)?)),
        (None, None) => Ok(None),
    }
}

type Decoded<'py> = PyResult<Option<Bound<'py, PyAny>>>;

fn decoded<'py>(py: Python<'py>, data: Option<&Data>, loads: Option<&Bound<'py, PyAny>>) -> Decoded<'py> {
    data.map(|data| convert::decode(py, data, loads)).transpose()
}

/// Namespace and rooms, the sender, and the packet as sent to clients.
type PlainEvent<'py, 'a> = ((&'a str, Bound<'py, PyTuple>), &'a str, String);

#[pymethods]
impl PyMessage {
    #[new]
    #[pyo3(signature = (r#type, nsp, *, uid="", to=Vec::new(), except_=Vec::new(), volatile=false, compress=None,
        rooms=Vec::new(), close=false, request_id=None, packet=None, packet_json=None, sockets=None, client_count=0,
        args=None))]
    #[allow(clippy::too_many_arguments, reason = "keywords, one for each field of the wire")]
    fn new(
        r#type: u64,
        nsp: &str,
        uid: &str,
        to: Vec<String>,
        except_: Vec<String>,
        volatile: bool,
        compress: Option<bool>,
        rooms: Vec<String>,
        close: bool,
        request_id: Option<String>,
        packet: Option<&Bound<'_, PyAny>>,
        packet_json: Option<String>,
        sockets: Option<&Bound<'_, PyAny>>,
        client_count: u64,
        args: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let kind = MessageType::from_number(r#type)
            .ok_or_else(|| PyValueError::new_err(format!("message types are 1 to 13, not {type}")))?;
        let root = match kind {
            MessageType::Broadcast | MessageType::ServerSideEmit => Root::Packet,
            _ => Root::Data,
        };
        let message = Message {
            uid: uid.to_owned(),
            opts: Opts { rooms: to, except: except_, flags: Flags { volatile, compress } },
            rooms,
            close,
            request_id,
            packet: data(packet, packet_json, root)?,
            sockets: data(sockets, None, Root::Data)?,
            client_count,
            args: data(args, None, Root::Data)?,
            ..Message::new(kind, nsp)
        };
        if let Some(name) = message.lacks() {
            let name = if name == "requestId" { "request_id" } else { name };
            return Err(PyTypeError::new_err(format!("a message of type {} needs {name}", kind.number())));
        }
        Ok(Self(message.trimmed()))
    }

    fn with_packet(&self, packet: &Bound<'_, PyAny>) -> PyResult<Self> {
        let Message { kind, uid, nsp, opts, request_id, .. } = &self.0;
        if *kind != MessageType::Broadcast {
            return Err(PyTypeError::new_err("only a broadcast can be given another packet"));
        }
        Ok(Self(Message {
            uid: uid.clone(),
            opts: opts.clone(),
            request_id: request_id.clone(),
            packet: Some(convert::encode(packet, Root::Packet)?),
            ..Message::new(*kind, nsp)
        }))
    }

    #[getter]
    fn r#type(&self) -> u8 {
        self.0.kind.number()
    }

    #[getter]
    fn uid(&self) -> &str {
        &self.0.uid
    }

    #[getter]
    fn nsp(&self) -> &str {
        &self.0.nsp
    }

    #[getter]
    fn is_from_go(&self) -> bool {
        self.0.is_from_go
    }

    #[getter]
    fn to(&self) -> &[String] {
        &self.0.opts.rooms
    }

    #[getter]
    fn except_(&self) -> &[String] {
        &self.0.opts.except
    }

    #[getter]
    fn volatile(&self) -> bool {
        self.0.opts.flags.volatile
    }

    #[getter]
    fn compress(&self) -> Option<bool> {
        self.0.opts.flags.compress
    }

    #[getter]
    fn rooms(&self) -> &[String] {
        &self.0.rooms
    }

    #[getter]
    fn close(&self) -> bool {
        self.0.close
    }

    #[getter]
    fn request_id(&self) -> Option<&str> {
        self.0.request_id.as_deref()
    }

    #[getter]
    fn client_count(&self) -> u64 {
        self.0.client_count
    }

    #[getter]
    fn has_packet(&self) -> bool {
        self.0.packet.is_some()
    }

    #[getter]
    fn packet_json(&self) -> Option<&str> {
        match &self.0 {
            Message { kind: MessageType::Broadcast, packet: Some(Data::Json(text)), .. } => Some(text),
            _ => None,
        }
    }

    /// Returns in one call what takes seven calls field by field, because it is read for every message under load.
    #[getter]
    fn plain_event<'py>(&self, py: Python<'py>) -> PyResult<Option<PlainEvent<'py, '_>>> {
        let Message { uid, nsp, opts, request_id: None, .. } = &self.0 else { return Ok(None) };
        let Some(text) = self.packet_json() else { return Ok(None) };
        if !opts.except.is_empty() || !text.starts_with("[\"") {
            return Ok(None);
        }
        let (comma, named) = if nsp == "/" { ("", "") } else { (",", nsp.as_str()) };
        let target = (nsp.as_str(), PyTuple::new(py, &opts.rooms)?);
        Ok(Some((target, uid, format!("{PACKET_EVENT}{named}{comma}{text}"))))
    }

    #[getter]
    fn is_binary(&self) -> bool {
        self.0.is_binary()
    }

    #[pyo3(signature = (loads=None))]
    fn packet<'py>(&self, py: Python<'py>, loads: Option<&Bound<'py, PyAny>>) -> Decoded<'py> {
        decoded(py, self.0.packet.as_ref(), loads)
    }

    #[pyo3(signature = (loads=None))]
    fn args<'py>(&self, py: Python<'py>, loads: Option<&Bound<'py, PyAny>>) -> Decoded<'py> {
        decoded(py, self.0.args.as_ref(), loads)
    }

    #[pyo3(signature = (loads=None))]
    fn sockets<'py>(&self, py: Python<'py>, loads: Option<&Bound<'py, PyAny>>) -> Decoded<'py> {
        decoded(py, self.0.sockets.as_ref(), loads)
    }

    fn data<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let Message { uid, .. } = &self.0;
        let wire = if self.0.is_binary() {
            Data::MessagePack(codec::msgpack::write(&self.0, uid)?)
        } else {
            Data::Json(codec::json::write(&self.0, uid) + "}")
        };
        convert::decode(py, &wire, None)?.call_method1("get", ("data", PyDict::new(py)))
    }

    fn __repr__(&self) -> String {
        let size = self.0.data().map(Data::len).sum::<usize>();
        format!("Message(type={}, nsp={:?}, uid={:?}, {size} bytes of data)", self.r#type(), self.0.nsp, self.0.uid)
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Self>().is_ok_and(|other| other.get().0 == self.0)
    }

    fn __hash__(&self, py: Python<'_>) -> PyResult<isize> {
        PyString::new(py, &codec::json::write(&self.0, &self.0.uid)).hash()
    }
}

/// See `_core.pyi`.
#[pyfunction]
pub fn encode_json(message: &PyMessage) -> PyResult<String> {
    if message.0.is_binary() {
        return Err(PyValueError::new_err("a message with binary data has no JSON form; use encode_msgpack"));
    }
    Ok(codec::json::write(&message.0, &message.0.uid) + "}")
}

/// See `_core.pyi`.
#[pyfunction]
pub fn encode_msgpack(message: &PyMessage) -> PyResult<Vec<u8>> {
    Ok(codec::msgpack::write(&message.0, &message.0.uid)?)
}

/// See `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (message, *, payload_threshold_bytes, max_payload_bytes))]
pub fn is_attachment(message: &PyMessage, payload_threshold_bytes: usize, max_payload_bytes: usize) -> PyResult<bool> {
    let limits = Limits { payload_threshold_bytes, max_payload_bytes };
    Ok(matches!(codec::encode(&message.0, &message.0.uid, limits)?, Encoded::Attachment { .. }))
}

/// See `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (payload, nsp="/"))]
pub fn decode_json(py: Python<'_>, payload: &str, nsp: &str) -> PyResult<Py<PyAny>> {
    Ok(match codec::decode_notification(payload, nsp)? {
        Received::Message(message) => Py::new(py, PyMessage(message))?.into_any(),
        Received::Attachment { uid, nsp, id } => (uid, nsp, id).into_pyobject(py)?.into_any().unbind(),
    })
}

/// See `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (body, uid="", nsp="/"))]
pub fn decode_msgpack(body: &[u8], uid: &str, nsp: &str) -> PyResult<PyMessage> {
    Ok(PyMessage(codec::decode_attachment(body, uid, nsp)?))
}

/// Constants that `messages.py` repeats; a test compares them.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("NOTIFY_LIMIT_BYTES", NOTIFY_LIMIT_BYTES)?;
    module.add("CHANNEL_LIMIT_BYTES", crate::wire::protocol::CHANNEL_LIMIT_BYTES)?;
    module.add("MAX_DEPTH", crate::wire::protocol::MAX_DEPTH)?;
    module.add("EMITTER_UID", crate::wire::protocol::EMITTER_UID)?;
    module.add("SOURCE", crate::wire::protocol::SOURCE)?;
    let names: Vec<(String, u8)> = MessageType::ALL.iter().map(|kind| (format!("{kind:?}"), kind.number())).collect();
    module.add("MESSAGE_TYPES", names)?;
    module.add_class::<PyMessage>()?;
    module.add_function(wrap_pyfunction!(encode_json, module)?)?;
    module.add_function(wrap_pyfunction!(encode_msgpack, module)?)?;
    module.add_function(wrap_pyfunction!(is_attachment, module)?)?;
    module.add_function(wrap_pyfunction!(decode_json, module)?)?;
    module.add_function(wrap_pyfunction!(decode_msgpack, module)?)?;
    Ok(())
}
