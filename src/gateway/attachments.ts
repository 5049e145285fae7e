import type { SessionRecord } from "../store/store.js";
import type { Params } from "./client-message.js";
import type { Link } from "./links.js";

/** A session that this client opened, and what is needed to open it again. */
export interface Attachment {
  readonly record: SessionRecord;
  /** The server that it was opened on last. */
  serverId: string;
  /** What the client asked for when it opened the session, without anything of the fleet's. */
  asked: Params;
  /** Whether the server has it in memory for this client, as far as is known. */
  attached: boolean;
  /** Whether its events say that it is in a turn, whoever began that. */
  inTurn: boolean;
  /** It is being opened again, by whoever needed it first. */
  reopening: Promise<Link> | null;
  /** The kinds of permission requests that nobody answered yet, by their ids. */
  readonly permissions: Map<string, string>;
}

export function newAttachment(record: SessionRecord, asked: Params): Attachment {
  return {
    record,
    serverId: record.serverId,
    asked,
    attached: false,
    inTurn: false,
    reopening: null,
    permissions: new Map(),
  };
}

/** The runtime's words for a session that it does not have in memory. */
export function saysUnloaded(body: Buffer): boolean {
  const { error } = JSON.parse(body.toString("utf8")) as { error?: { message?: unknown } };
  return typeof error?.message === "string" && /session not found/i.test(error.message);
}
