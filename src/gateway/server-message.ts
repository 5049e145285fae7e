import { isId, type RpcId } from "./client-message.js";
import { type Member, plainString, scanObject } from "./scan.js";

/** What a server sent, as far as the front door has to know it. The frame itself passes on as it came. */
export type ServerMessage =
  | { kind: "response"; id: RpcId; failed: boolean; idAt: Member }
  | { kind: "request"; id: RpcId; method: string; sessionId: string | undefined; idAt: Member }
  | { kind: "notification"; method: string; sessionId: string | undefined; eventType: string | undefined };

/** How the runtime begins most of its frames: those are read without looking at the rest. */
const EVENT = Buffer.from('{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"');
const TYPE = Buffer.from('","event":{"type":"');
const LONGEST_NAME = 200;

/** @returns null for what is no message of JSON-RPC, or has an id that nothing of ours has. */
export function readServerFrame(body: Buffer): ServerMessage | null {
  return readEvent(body) ?? readAny(body);
}

/** Writers of JSON do not write a key twice, so what the beginning says is all there is to know. */
function readEvent(body: Buffer): ServerMessage | null {
  if (body.length < EVENT.length || EVENT.compare(body, 0, EVENT.length) !== 0) return null;
  const idEnd = body.indexOf(TYPE, EVENT.length);
  if (idEnd === -1 || idEnd - EVENT.length > LONGEST_NAME) return null;
  const typeStart = idEnd + TYPE.length;
  const typeEnd = body.indexOf('"', typeStart);
  if (typeEnd === -1 || typeEnd - typeStart > LONGEST_NAME) return null;
  const sessionId = body.toString("utf8", EVENT.length, idEnd);
  if (/["\\]/.test(sessionId)) return null;
  const eventType = body.toString("utf8", typeStart, typeEnd);
  return { kind: "notification", method: "session.event", sessionId, eventType };
}

function readAny(body: Buffer): ServerMessage | null {
  const members = byKey(scanObject(body));
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
  return { kind: "notification", method, sessionId, eventType: stringAt(body, event.get("type")) };
}

function byKey(members: Member[] | null): Map<string, Member> {
  return new Map(members?.map((member) => [member.key, member]));
}

function stringAt(body: Buffer, member: Member | undefined): string | undefined {
  return member && plainString(body, member);
}

function readId(body: Buffer, { start, end }: Member): RpcId | undefined {
  const value: unknown = JSON.parse(body.toString("utf8", start, end));
  return isId(value) ? value : undefined;
}
