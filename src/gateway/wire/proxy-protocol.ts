import { PARSE_ERROR, ProtocolError } from "../../runtime/wire/frames.js";

/**
 * The first bytes of a PROXY protocol header, version 2. In this header, a proxy names the client for which it connects
 * (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, section 2.2).
 */
const SIGNATURE = Buffer.from("\r\n\r\n\0\r\nQUIT\n", "latin1");
const FIXED_BYTES = 16;
/** The longest part behind the fixed bytes: the addresses and extra fields. Proxies send a few hundred bytes. */
const MAX_VARIABLE_BYTES = 4 * 1024;
const VERSION = 0x2;
const [LOCAL, PROXY] = [0x0, 0x1];
const [TCP4, TCP6] = [0x11, 0x21];
/** The length of the addresses: source and destination, each with a port of two bytes. */
const [TCP4_BYTES, TCP6_BYTES] = [2 * (4 + 2), 2 * (16 + 2)];

export interface ProxyHeader {
  /** The header's length, in bytes. */
  length: number;
  /** The client's address. Null if the proxy connects on its own behalf, for example to check that the port is open. */
  address: string | null;
}

/**
 * Reads the header at the beginning of a connection.
 *
 * @param bytes everything that has arrived
 * @returns null while the header is incomplete.
 * @throws ProtocolError when the bytes do not begin with a valid header, or when the header is for something other than
 * a TCP client or a connection of the proxy itself.
 */
export function readProxyHeader(bytes: Buffer): ProxyHeader | null {
  const known = Math.min(bytes.length, SIGNATURE.length);
  if (bytes.compare(SIGNATURE, 0, known, 0, known) !== 0) {
    throw refused("begins without the header that serve.proxyProtocol requires");
  }
  if (bytes.length < FIXED_BYTES) return null;
  const [versionAndCommand = 0, family = 0] = [bytes[12], bytes[13]];
  const command = versionAndCommand & 0xf;
  if (versionAndCommand >> 4 !== VERSION || (command !== LOCAL && command !== PROXY)) {
    throw refused("has a header of another version or command");
  }
  const variable = bytes.readUInt16BE(14);
  if (variable > MAX_VARIABLE_BYTES) throw refused(`has a header of more than ${MAX_VARIABLE_BYTES} bytes`);
  const length = FIXED_BYTES + variable;
  if (bytes.length < length) return null;
  if (command === LOCAL) return { length, address: null };
  if (family === TCP4 && variable >= TCP4_BYTES) {
    return { length, address: bytes.subarray(FIXED_BYTES, FIXED_BYTES + 4).join(".") };
  }
  if (family === TCP6 && variable >= TCP6_BYTES) return { length, address: ipv6(bytes, FIXED_BYTES) };
  throw refused("has a header for something other than TCP over IPv4 or IPv6");
}

function ipv6(bytes: Buffer, from: number): string {
  const groups = Array.from({ length: 8 }, (_, index) => bytes.readUInt16BE(from + 2 * index).toString(16));
  // The URL parser shortens the address, so that each address appears in the log in one form only.
  return new URL(`http://[${groups.join(":")}]`).hostname.slice(1, -1);
}

function refused(what: string): ProtocolError {
  return new ProtocolError(`The connection ${what} (PROXY protocol v2).`, PARSE_ERROR);
}
