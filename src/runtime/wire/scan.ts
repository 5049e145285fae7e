import { PARSE_ERROR, ProtocolError } from "./frames.js";

export interface Member {
  /** The key as written, without its quotes. Escapes are not resolved. */
  key: string;
  /** The offsets of the value's first byte and of the byte after its last one. */
  start: number;
  end: number;
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const COLON = 0x3a;
const COMMA = 0x2c;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;
const OPEN_BRACKET = 0x5b;
const CLOSE_BRACKET = 0x5d;

export interface ScanLimits {
  /** The maximum depth of nesting. The object itself is the first level. */
  depth: number;
  /** The maximum number of values. Each comma, each `{` and each `[` outside of strings counts as one. */
  values: number;
}

const UNLIMITED: ScanLimits = { depth: Number.POSITIVE_INFINITY, values: Number.POSITIVE_INFINITY };

/**
 * Finds the members of the object that begins at `from`, without parsing their values. Null if no object begins there,
 * or if it is malformed. The result is exact only for valid JSON. A caller that forwards unchecked text must parse it
 * first, or rely on the receiver to reject it.
 */
export function scanObject(text: Buffer, from = 0): Member[] | null {
  return scanWithin(text, UNLIMITED, from)?.members ?? null;
}

/**
 * Like {@link scanObject}, but stops at the first value over a limit, so that hostile text costs no more than legal
 * text. In this case, `over` names the limit, and the last member is the one that contains the value. The `end` of that
 * member is the end of the text.
 */
export function scanWithin(
  text: Buffer,
  limits: ScanLimits,
  from = 0,
): { members: Member[]; over: keyof ScanLimits | null } | null {
  const scan = new Scanner(text, limits);
  const members = scan.object(from);
  return members === null ? null : { members, over: scan.over };
}

/**
 * Each `skip…` method takes the offset at which a value begins. It returns the offset after the value, or -1 if the
 * value is malformed or exceeds a limit.
 */
class Scanner {
  over: keyof ScanLimits | null = null;
  readonly #text: Buffer;
  readonly #maxDepth: number;
  #valuesLeft: number;

  constructor(text: Buffer, { depth, values }: ScanLimits) {
    this.#text = text;
    this.#maxDepth = depth;
    this.#valuesLeft = values;
  }

  object(from: number): Member[] | null {
    const text = this.#text;
    let at = skipBlanks(text, from);
    if (text[at] !== OPEN_BRACE) return null;
    const members: Member[] = [];
    at = skipBlanks(text, at + 1);
    if (text[at] === CLOSE_BRACE) return members;
    for (;;) {
      if (text[at] !== QUOTE) return null;
      const keyEnd = skipString(text, at);
      if (keyEnd === -1) return null;
      const key = text.toString("utf8", at + 1, keyEnd - 1);
      at = skipBlanks(text, keyEnd);
      if (text[at] !== COLON) return null;
      const start = skipBlanks(text, at + 1);
      if (--this.#valuesLeft < 0) this.over = "values";
      const end = this.over === null ? this.#skipValue(start) : -1;
      if (this.over !== null) {
        members.push({ key, start, end: text.length });
        return members;
      }
      if (end === -1) return null;
      members.push({ key, start, end });
      at = skipBlanks(text, end);
      if (text[at] === CLOSE_BRACE) return members;
      if (text[at] !== COMMA) return null;
      at = skipBlanks(text, at + 1);
    }
  }

  #skipValue(from: number): number {
    const text = this.#text;
    const first = text[from];
    if (first === QUOTE) return skipString(text, from);
    if (first === OPEN_BRACE || first === OPEN_BRACKET) return this.#skipNested(from);
    let at = from;
    for (let byte = text[at]; isScalar(byte); byte = text[at]) at++;
    return at === from ? -1 : at;
  }

  #skipNested(from: number): number {
    const text = this.#text;
    // The object that contains this value is the first level.
    const maxDepth = this.#maxDepth - 1;
    let valuesLeft = this.#valuesLeft;
    let depth = 0;
    for (let at = from; at < text.length; at++) {
      const byte = text[at];
      if (byte === QUOTE) {
        at = skipString(text, at) - 1;
        if (at < 0) return -1;
      } else if (byte === COMMA) {
        if (--valuesLeft < 0) return this.#stop("values");
      } else if (byte === OPEN_BRACE || byte === OPEN_BRACKET) {
        if (++depth > maxDepth) return this.#stop("depth");
        if (--valuesLeft < 0) return this.#stop("values");
      } else if (byte === CLOSE_BRACE || byte === CLOSE_BRACKET) {
        if (--depth > 0) continue;
        this.#valuesLeft = valuesLeft;
        return at + 1;
      }
    }
    return -1;
  }

  #stop(over: keyof ScanLimits): number {
    this.over = over;
    return -1;
  }
}

/** The value of a string member; undefined if it has escapes, or is not a string. */
export function plainString(text: Buffer, { start, end }: Member): string | undefined {
  if (text[start] !== QUOTE) return undefined;
  const value = text.toString("utf8", start + 1, end - 1);
  return value.includes("\\") ? undefined : value;
}

function skipBlanks(text: Buffer, from: number): number {
  let at = from;
  for (let byte = text[at]; byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09; byte = text[at]) at++;
  return at;
}

/**
 * Returns the offset after a string. Finds its end with one search for a quote, so megabytes cost little. After the
 * first escaped quote, checks each byte, because searches for quotes that are close together are slow.
 */
function skipString(text: Buffer, from: number): number {
  const quote = text.indexOf(QUOTE, from + 1);
  if (quote === -1) return -1;
  if (text[quote - 1] !== BACKSLASH) return quote + 1;
  let before = quote - 1;
  while (text[before] === BACKSLASH) before--;
  // An odd number of backslashes escapes the quote.
  if ((quote - before) % 2 === 1) return quote + 1;
  for (let at = quote + 1; at < text.length; at++) {
    const byte = text[at];
    if (byte === BACKSLASH) at++;
    else if (byte === QUOTE) return at + 1;
  }
  return -1;
}

/**
 * Whether a byte can occur in a number, `true`, `false` or `null`: a digit, a lower-case letter, `+`, `-`, `.` or `E`.
 */
function isScalar(byte: number | undefined): boolean {
  if (byte === undefined) return false;
  const isDigitOrLetter = (byte >= 0x30 && byte <= 0x39) || (byte >= 0x61 && byte <= 0x7a);
  return isDigitOrLetter || byte === 0x2b || byte === 0x2d || byte === 0x2e || byte === 0x45;
}

/** JSON-RPC 2.0 also allows null but discourages it. Fractions and huge numbers do not identify a request reliably. */
export type RpcId = string | number;

/**
 * The parts of a server's message that the front door needs. The door forwards the frame itself, and replaces at most
 * the id.
 */
export type ServerMessage =
  | { kind: "response"; id: RpcId; failed: boolean; idAt: Member }
  | { kind: "request"; id: RpcId; method: string; sessionId: string | undefined; idAt: Member }
  /** `eventType` is the type of a session event or of a lifecycle notification. */
  | { kind: "notification"; method: string; sessionId: string | undefined; eventType: string | undefined };

/**
 * How most of the runtime's frames begin: an event of a session, or a lifecycle notification. The rest of such a frame
 * is not read, because an event may have megabytes. The pattern accepts only names in printable ASCII without escapes,
 * so that their bytes can be used as they are.
 */
const NOTIFICATION =
  /^\{"jsonrpc":"2\.0","method":"session\.(?:event","params":\{"sessionId":"([ !#-[\]-~]*)","event":\{"type":"([ !#-[\]-~]*)"|lifecycle","params":\{"type":"([ !#-[\]-~]*)","sessionId":"([ !#-[\]-~]*)")/;
const BEGINNING_BYTES = 512;
const MAX_ID_LENGTH = 256;

/**
 * Reads the parts that the front door needs. Null if the body is not a JSON-RPC message, or if {@link isId} rejects its
 * id. Throws `ProtocolError` for a body that it recognizes as invalid JSON.
 */
export function readServerFrame(body: Buffer): ServerMessage | null {
  // JSON writers do not write a key twice, so the beginning is enough to identify the message.
  const names = NOTIFICATION.exec(body.toString("latin1", 0, BEGINNING_BYTES));
  if (names !== null) {
    const [, sessionId, eventType, lifecycleType, itsSession] = names;
    if (sessionId !== undefined) return { kind: "notification", method: "session.event", sessionId, eventType };
    return { kind: "notification", method: "session.lifecycle", sessionId: itsSession, eventType: lifecycleType };
  }
  const found = scanObject(body);
  if (found === null) parse(body);
  const members = byKey(found);
  const [idAt, methodAt, paramsAt] = [members.get("id"), members.get("method"), members.get("params")];
  const id = idAt && readId(body, idAt);
  if (methodAt === undefined) {
    if (idAt === undefined || id === undefined) return null;
    return { kind: "response", id, failed: members.has("error"), idAt };
  }
  const method = plainString(body, methodAt);
  if (method === undefined) return null;
  const params = byKey(paramsAt ? scanObject(body, paramsAt.start) : null);
  const sessionId = stringAt(body, params.get("sessionId"));
  if (idAt !== undefined) return id === undefined ? null : { kind: "request", id, method, sessionId, idAt };
  const eventAt = params.get("event");
  const event = byKey(eventAt ? scanObject(body, eventAt.start) : null);
  const typeAt = method === "session.lifecycle" ? params.get("type") : event.get("type");
  return { kind: "notification", method, sessionId, eventType: stringAt(body, typeAt) };
}

function byKey(members: Member[] | null): Map<string, Member> {
  return new Map(members?.map((member) => [member.key, member]));
}

function stringAt(body: Buffer, member: Member | undefined): string | undefined {
  return member && plainString(body, member);
}

export function isId(value: unknown): value is RpcId {
  return typeof value === "string" ? value.length <= MAX_ID_LENGTH : Number.isSafeInteger(value);
}

function readId(body: Buffer, { start, end }: Member): RpcId | undefined {
  const value = parse(body, start, end);
  return isId(value) ? value : undefined;
}

export function parse(body: Buffer, start = 0, end = body.length): unknown {
  try {
    return JSON.parse(body.toString("utf8", start, end));
  } catch {
    // The parser's own message would quote the content.
    throw new ProtocolError("A frame is not JSON.", PARSE_ERROR);
  }
}
