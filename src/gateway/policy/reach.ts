import type { Config } from "../../config/schema.js";
import type { ClientRequest, Params } from "../wire/client-message.js";
import { approvalDenied, hostDenied, methodDenied } from "../wire/refusals.js";
import type { Handling } from "./methods.js";

/*
 * The limits on requests that clients may otherwise make freely. Some of their parameters reach beyond the
 * conversation: to the disk and the programs of the server's machine, or to tools that the user did not approve.
 */

/** The server that a request is for, and the configuration that applies there. */
export interface Reach {
  config: Config;
  /** Whether it is the user's own server, with no other user's sessions on it. */
  own: boolean;
}

/** Whether the client may use files and programs on the server's machine. Without a sandbox, "auto" means no. */
export function reachesHost({ own, config: { session } }: Reach): boolean {
  return own && session.host === "owner";
}

/** Whether the client may approve tools other than its own. */
export function decidesOnTools({ own, config: { session } }: Reach): boolean {
  return session.approve === "all" || (own && session.approve === "ask");
}

/** The modes in which the user is asked before a tool does anything. */
const ASKING_MODES = ["interactive", "plan"];

/**
 * Refuses methods that reach the server's machine, attachments that the server would read from its own disk, methods that
 * approve tools, and modes in which the user is not asked.
 */
export function checkReach(
  { method, params }: Pick<ClientRequest, "method" | "params">,
  { host, approves }: Pick<Handling, "host" | "approves">,
  reach: Reach,
): void {
  const isFree = reachesHost(reach);
  if (host === true && !isFree) throw hostDenied(method, "it reaches files or programs");
  if (!isFree) refuseFiles(method, params, reach);
  if (decidesOnTools(reach)) return;
  if (approves === true) throw approvalDenied(method);
  // On a user's own server the mode does not change approvals (measured with 1.0.85).
  if (reach.own) return;
  for (const name of ["mode", "agentMode"] as const) {
    const mode = params[name];
    const isMode = name === "agentMode" || method === "session.mode.set";
    if (isMode && mode !== undefined && mode !== null && !ASKING_MODES.includes(String(mode))) {
      throw methodDenied(
        method,
        `${JSON.stringify(name)} must be "interactive" or "plan" on a server that other users share`,
      );
    }
  }
}

function refuseFiles(method: string, params: Params, { own }: Reach): void {
  for (const attachment of attachmentsIn(params)) {
    if (typeof attachment === "object" && attachment !== null && "type" in attachment && attachment.type === "blob")
      continue;
    if (own) throw hostDenied(method, 'an attachment other than "blob" is read from the disk');
    throw methodDenied(
      method,
      'attachments other than "blob" would be read from the disk of a server that other users share',
    );
  }
}

function attachmentsIn(value: unknown): unknown[] {
  if (Array.isArray(value)) return value.flatMap(attachmentsIn);
  if (typeof value !== "object" || value === null) return [];
  return Object.entries(value).flatMap(([key, inner]) =>
    key === "attachments" && Array.isArray(inner) ? inner : attachmentsIn(inner),
  );
}

/** A question that a server asks by an event to the clients of one session. They answer it by its `requestId`. */
export interface ServerQuestion {
  kind: string | undefined;
  /** The name of the tool, if the request is about a client's tool. */
  tool: string | undefined;
}

/** A permission request, and its relation to the client that answers it. */
export interface Permission {
  /** The request itself; undefined if this front door did not see it. */
  asked: ServerQuestion | undefined;
  /** Whether it is about a tool that this client brought. */
  isOwnTool: boolean;
  isCollaborative: boolean;
}

/**
 * The parameters of a permission decision that the server gets. A client that may not approve tools can still approve
 * its own, because those run in the client.
 *
 * @returns null for another client's tool, because only that client decides on it
 */
export function decide(params: Params, { asked, isOwnTool, isCollaborative }: Permission, reach: Reach): Params | null {
  const { kind: decision } = (params.result ?? {}) as { kind?: unknown };
  const decides = decidesOnTools(reach);
  if (asked?.kind === "custom-tool" && !isOwnTool && (isCollaborative || !decides)) return null;
  if (decides) return params;
  if (decision === "reject" || decision === "user-not-available") return params;
  if (decision === "approve-once" && asked?.kind === "custom-tool") return params;
  const feedback = `Tools are not allowed here (session.approve is ${JSON.stringify(reach.config.session.approve)}).`;
  return { sessionId: params.sessionId, requestId: params.requestId, result: { kind: "reject", feedback } };
}

/** Removes approvals from a client's answer to a hook. Otherwise a client that may not approve tools could do it by a hook. */
export function withoutApproval(result: unknown): unknown {
  if (Array.isArray(result)) return result.map(withoutApproval);
  if (typeof result !== "object" || result === null) return result;
  const kept = Object.entries(result).filter(([key, value]) => key !== "permissionDecision" || RESTRICTING.has(value));
  return Object.fromEntries(kept.map(([key, value]) => [key, key === "modifiedArgs" ? value : withoutApproval(value)]));
}

const RESTRICTING = new Set<unknown>(["deny", "ask"]);
