//! `Message`: one cluster message as Python sees it.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use super::convert::{self, Root};
use crate::wire::codec::{self, Encoded, Limits, Received};
use crate::wire::protocol::{Body, Data, Flags, Message, MessageType, NOTIFY_LIMIT_BYTES, Opts, PACKET_EVENT};

/// See `_core.pyi`.
#[pyclass(name = "Message", frozen, module = "socketio_postgres._core")]
pub struct PyMessage(pub Message);

/// Encode `value`, or take `text` made by a custom json module.
fn data(value: Option<&Bound<'_, PyAny>>, text: Option<String>, root: Root) -> PyResult<Option<Data>> {
    match (value, text) {
        (Some(_), Some(_)) => Err(PyTypeError::new_err("give a value or its JSON text, not both")),
        (Some(value), None) => Ok(Some(convert::encode(value, root)?)),
        (None, Some(text)) => Ok(Some(convert::json_text(text)?)),
        (None, None) => Ok(None),
    }
}

fn required<T>(value: Option<T>, name: &str, kind: MessageType) -> PyResult<T> {
    value.ok_or_else(|| PyTypeError::new_err(format!("a message of type {} needs {name}", kind.number())))
}

/// Namespace and rooms, the sender, and the packet as it goes to clients.
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
        let opts = Opts { rooms: to, except: except_, flags: Flags { volatile, compress } };
        let root = match kind {
            MessageType::Broadcast | MessageType::ServerSideEmit => Root::Packet,
            _ => Root::Data,
        };
        let packet = data(packet, packet_json, root)?;
        let body = match kind {
            MessageType::InitialHeartbeat => Body::InitialHeartbeat,
            MessageType::Heartbeat => Body::Heartbeat,
            MessageType::AdapterClose => Body::AdapterClose,
            MessageType::Broadcast => Body::Broadcast { opts, packet: required(packet, "packet", kind)?, request_id },
            MessageType::SocketsJoin => Body::SocketsJoin { opts, rooms },
            MessageType::SocketsLeave => Body::SocketsLeave { opts, rooms },
            MessageType::DisconnectSockets => Body::DisconnectSockets { opts, close },
            MessageType::FetchSockets => {
                Body::FetchSockets { opts, request_id: required(request_id, "request_id", kind)? }
            }
            MessageType::FetchSocketsResponse => Body::FetchSocketsResponse {
                request_id: required(request_id, "request_id", kind)?,
                sockets: required(data(sockets, None, Root::Data)?, "sockets", kind)?,
            },
            MessageType::ServerSideEmit => {
                Body::ServerSideEmit { packet: required(packet, "packet", kind)?, request_id }
            }
            MessageType::ServerSideEmitResponse => {
                Body::ServerSideEmitResponse { request_id: required(request_id, "request_id", kind)?, packet }
            }
            MessageType::BroadcastClientCount => {
                Body::BroadcastClientCount { request_id: required(request_id, "request_id", kind)?, client_count }
            }
            MessageType::BroadcastAck => Body::BroadcastAck {
                request_id: required(request_id, "request_id", kind)?,
                packet,
                args: data(args, None, Root::Data)?,
            },
        };
        Ok(Self(Message { uid: uid.to_owned(), nsp: nsp.to_owned(), body, is_from_go: false }))
    }

    fn with_packet(&self, packet: &Bound<'_, PyAny>) -> PyResult<Self> {
        let Body::Broadcast { opts, request_id, .. } = &self.0.body else {
            return Err(PyTypeError::new_err("only a broadcast can be given another packet"));
        };
        let packet = convert::encode(packet, Root::Packet)?;
        let body = Body::Broadcast { opts: opts.clone(), packet, request_id: request_id.clone() };
        Ok(Self(Message { body, uid: self.0.uid.clone(), nsp: self.0.nsp.clone(), is_from_go: false }))
    }

    #[getter]
    fn r#type(&self) -> u8 {
        self.0.body.message_type().number()
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
    fn to(&self) -> Vec<&str> {
        self.opts().map(|opts| opts.rooms.iter().map(String::as_str).collect()).unwrap_or_default()
    }

    #[getter]
    fn except_(&self) -> Vec<&str> {
        self.opts().map(|opts| opts.except.iter().map(String::as_str).collect()).unwrap_or_default()
    }

    #[getter]
    fn volatile(&self) -> bool {
        self.opts().is_some_and(|opts| opts.flags.volatile)
    }

    #[getter]
    fn compress(&self) -> Option<bool> {
        self.opts().and_then(|opts| opts.flags.compress)
    }

    #[getter]
    fn rooms(&self) -> Vec<&str> {
        match &self.0.body {
            Body::SocketsJoin { rooms, .. } | Body::SocketsLeave { rooms, .. } => {
                rooms.iter().map(String::as_str).collect()
            }
            _ => Vec::new(),
        }
    }

    #[getter]
    fn close(&self) -> bool {
        matches!(self.0.body, Body::DisconnectSockets { close: true, .. })
    }

    #[getter]
    fn request_id(&self) -> Option<&str> {
        match &self.0.body {
            Body::Broadcast { request_id, .. } | Body::ServerSideEmit { request_id, .. } => request_id.as_deref(),
            Body::FetchSockets { request_id, .. }
            | Body::FetchSocketsResponse { request_id, .. }
            | Body::ServerSideEmitResponse { request_id, .. }
            | Body::BroadcastClientCount { request_id, .. }
            | Body::BroadcastAck { request_id, .. } => Some(request_id),
            _ => None,
        }
    }

    #[getter]
    fn client_count(&self) -> u64 {
        match self.0.body {
            Body::BroadcastClientCount { client_count, .. } => client_count,
            _ => 0,
        }
    }

    #[getter]
    fn has_packet(&self) -> bool {
        self.packet_data().is_some()
    }

    #[getter]
    fn packet_json(&self) -> Option<&str> {
        match &self.0.body {
            Body::Broadcast { packet: Data::Json(text), .. } => Some(text),
            _ => None,
        }
    }

    /// In one crossing what takes seven by field: it is asked of every message of a flood.
    #[getter]
    fn plain_event<'py>(&self, py: Python<'py>) -> PyResult<Option<PlainEvent<'py, '_>>> {
        let Message { uid, nsp, body, .. } = &self.0;
        let Body::Broadcast { opts, packet: Data::Json(text), request_id: None } = body else { return Ok(None) };
        if !opts.except.is_empty() || !text.starts_with("[\"") {
            return Ok(None);
        }
        let (comma, named) = if nsp == "/" { ("", "") } else { (",", nsp.as_str()) };
        let target = (nsp.as_str(), PyTuple::new(py, &opts.rooms)?);
        Ok(Some((target, uid, format!("{PACKET_EVENT}{named}{comma}{text}"))))
    }

    #[getter]
    fn is_binary(&self) -> bool {
        self.0.body.data().any(|data| matches!(data, Data::MessagePack(_)))
    }

    #[pyo3(signature = (loads=None))]
    fn packet<'py>(&self, py: Python<'py>, loads: Option<&Bound<'py, PyAny>>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.packet_data().map(|data| convert::decode(py, data, loads)).transpose()
    }

    #[pyo3(signature = (loads=None))]
    fn args<'py>(&self, py: Python<'py>, loads: Option<&Bound<'py, PyAny>>) -> PyResult<Option<Bound<'py, PyAny>>> {
        match &self.0.body {
            Body::BroadcastAck { args: Some(args), .. } => convert::decode(py, args, loads).map(Some),
            _ => Ok(None),
        }
    }

    #[pyo3(signature = (loads=None))]
    fn sockets<'py>(&self, py: Python<'py>, loads: Option<&Bound<'py, PyAny>>) -> PyResult<Option<Bound<'py, PyAny>>> {
        match &self.0.body {
            Body::FetchSocketsResponse { sockets, .. } => convert::decode(py, sockets, loads).map(Some),
            _ => Ok(None),
        }
    }

    fn data<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let out = PyDict::new(py);
        if let Some(opts) = self.opts() {
            let flags = PyDict::new(py);
            if opts.flags.volatile {
                flags.set_item("volatile", true)?;
            }
            if let Some(compress) = opts.flags.compress {
                flags.set_item("compress", compress)?;
            }
            let dict = PyDict::new(py);
            dict.set_item("rooms", &opts.rooms)?;
            dict.set_item("except", &opts.except)?;
            dict.set_item("flags", flags)?;
            out.set_item("opts", dict)?;
        }
        if let Some(id) = self.request_id() {
            out.set_item("requestId", id)?;
        }
        match &self.0.body {
            Body::SocketsJoin { rooms, .. } | Body::SocketsLeave { rooms, .. } => out.set_item("rooms", rooms)?,
            Body::DisconnectSockets { close, .. } => out.set_item("close", close)?,
            Body::BroadcastClientCount { client_count, .. } => out.set_item("clientCount", client_count)?,
            _ => {}
        }
        if let Some(packet) = self.packet(py, None)? {
            if let Body::Broadcast { .. } = self.0.body {
                let dict = PyDict::new(py);
                dict.set_item("type", PACKET_EVENT)?;
                dict.set_item("nsp", &self.0.nsp)?;
                dict.set_item("data", packet)?;
                out.set_item("packet", dict)?;
            } else {
                out.set_item("packet", packet)?;
            }
        }
        if let Some(args) = self.args(py, None)? {
            out.set_item("args", args)?;
        }
        if let Some(sockets) = self.sockets(py, None)? {
            out.set_item("sockets", sockets)?;
        }
        Ok(out)
    }

    fn __repr__(&self) -> String {
        let size = self.0.body.data().map(Data::len).sum::<usize>();
        format!("Message(type={}, nsp={:?}, uid={:?}, {size} bytes of data)", self.r#type(), self.0.nsp, self.0.uid)
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Self>().is_ok_and(|other| other.get().0 == self.0)
    }

    fn __hash__(&self, py: Python<'_>) -> PyResult<isize> {
        PyString::new(py, &codec::json::write(&self.0, &self.0.uid)).hash()
    }
}

impl PyMessage {
    fn opts(&self) -> Option<&Opts> {
        match &self.0.body {
            Body::Broadcast { opts, .. }
            | Body::SocketsJoin { opts, .. }
            | Body::SocketsLeave { opts, .. }
            | Body::DisconnectSockets { opts, .. }
            | Body::FetchSockets { opts, .. } => Some(opts),
            _ => None,
        }
    }

    fn packet_data(&self) -> Option<&Data> {
        match &self.0.body {
            Body::Broadcast { packet, .. } | Body::ServerSideEmit { packet, .. } => Some(packet),
            Body::ServerSideEmitResponse { packet, .. } | Body::BroadcastAck { packet, .. } => packet.as_ref(),
            _ => None,
        }
    }
}

/// See `_core.pyi`.
#[pyfunction]
pub fn encode_json(message: &PyMessage) -> PyResult<String> {
    if message.is_binary() {
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
