import type { Params } from "./client-message.js";
import type { Link } from "./links.js";
import { toolsIn } from "./members.js";
import { parse } from "./server-message.js";

/** A session that this client opened, here or on another host, and what is needed to open it again. */
export interface Attachment {
  readonly sessionId: string;
  /** The link that it was opened on last, by its id: that of a server, or of another host's front door. */
  linkId: string;
  /** What the client asked for when it opened the session, without anything of the fleet's. */
  asked: Params;
  /** Whether the other end of that link has it open for this client, as far as is known. */
  attached: boolean;
  /** Whether what the server says to all of the session's life is about this one: its id may be another's once it is unloaded. */
  heard: boolean;
  /** Whether its events say that it is in a turn, whoever began that. */
  inTurn: boolean;
  /** It is being opened again, by whoever needed it first. */
  reopening: Promise<Link> | null;
}

export function newAttachment(sessionId: string, linkId: string, asked: Params): Attachment {
  return {
    sessionId,
    linkId,
    asked,
    attached: false,
    heard: false,
    inTurn: false,
    reopening: null,
  };
}

/** The names of the tools that the client brought, as it opened the session or has set them since. */
export function ownTools({ asked }: Pick<Attachment, "asked">): Set<string> {
  return new Set(toolsIn(asked).map(({ name }) => String(name)));
}

/** The runtime's words for a session that it does not have in memory. */
export function saysUnloaded(body: Buffer): boolean {
  const { error } = parse(body) as { error?: { message?: unknown } };
  return typeof error?.message === "string" && isNotFound(error.message);
}

/** The same of the message alone. */
export function isNotFound(message: string): boolean {
  return /session not found/i.test(message);
}

/** Whether a client has the session in a folder of its own choice: what is there is its server's to say. */
export function isElsewhere({ configDir }: Params): boolean {
  return configDir !== undefined && configDir !== null;
}
