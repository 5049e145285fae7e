import { parse } from "../../runtime/wire/server-message.js";
import { toolsIn } from "../policy/members.js";
import type { Params } from "../wire/client-message.js";
import type { Link } from "./links.js";

/** A session that this client opened, here or on another host, with all that is needed to open it again. */
export interface Attachment {
  readonly sessionId: string;
  /** The id of the link on which the session was last opened: to a server, or to another host's front door. */
  linkId: string;
  /** The parameters with which the client opened the session, without those that the fleet adds. */
  asked: Params;
  /** Whether the other end of that link has the session open for this client, as far as we know. */
  attached: boolean;
  /**
   * Whether `session.lifecycle` events, which a server sends to all clients, are about this session. Once it is unloaded,
   * another session may get its id.
   */
  heard: boolean;
  /** Whether its events show that it is in a turn, of this client or another. */
  inTurn: boolean;
  /** Set while the session is being reopened. The first request that needs it starts that, and the others wait for it. */
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

/** The names of the tools that the client brought when it opened the session, or has set after that. */
export function ownTools({ asked }: Pick<Attachment, "asked">): Set<string> {
  return new Set(toolsIn(asked).map(({ name }) => String(name)));
}

/** Whether an answer is the runtime's error for a session that it does not have in memory. */
export function saysUnloaded(body: Buffer): boolean {
  const { error } = parse(body) as { error?: { message?: unknown } };
  return typeof error?.message === "string" && isNotFound(error.message);
}

/** The same for the message of such an error. */
export function isNotFound(message: string): boolean {
  return /session not found/i.test(message);
}

/** Whether a client keeps the session in a folder of its own choice, where only the server looks for it. */
export function isElsewhere({ configDir }: Params): boolean {
  return configDir !== undefined && configDir !== null;
}
