import type { Config } from "../config/schema.js";
import type { Params } from "./client-message.js";
import type { Protocol } from "./protocols.js";
import { approvalDenied, hostDenied, methodDenied } from "./refusals.js";
import type { SessionRequest } from "./session-requests.js";

/**
 * What a client may not say in a request that is otherwise its own affair, since it reaches past the conversation all the
 * same: to the disk and the programs of the server's machine, or to tools that nobody approved.
 */

/** Where a request goes to, and what the fleet allows there. */
export interface Reach {
  config: Config;
  /** The user's own server: nobody else's sessions are on it. */
  own: boolean;
}

/** Whether the client may have files read and written, and programs started. Without a sandbox "auto" means no. */
export function reachesHost({ own, config: { session } }: Reach): boolean {
  return own && session.host === "owner";
}

/** Whether the client's word on tools counts, other than on tools of its own. */
export function decidesOnTools({ own, config: { session } }: Reach): boolean {
  return session.approve === "all" || (own && session.approve === "ask");
}

/** The modes in which the user is asked before a tool does anything. */
const ASKING_MODES = ["interactive", "plan"];

/**
 * Refuses attachments that the server would read from its own disk, methods that approve tools, and modes in which nobody
 * is asked. `protocol` is the client's.
 *
 * @throws FleetError `FLEET_METHOD_DENIED`.
 */
export function checkReach(method: string, params: Params, reach: Reach, protocol: Pick<Protocol, "approves">): void {
  if (!reachesHost(reach)) refuseFiles(method, params, reach);
  if (decidesOnTools(reach)) return;
  if (protocol.approves(method)) throw approvalDenied(method);
  // On a user's own server the mode changes nothing about approvals (measured with 1.0.85).
  if (reach.own) return;
  for (const name of ["mode", "agentMode"] as const) {
    const mode = params[name];
    const isMode = name === "agentMode" || method === "session.mode.set";
    if (isMode && mode !== undefined && mode !== null && !ASKING_MODES.includes(String(mode))) {
      throw methodDenied(
        method,
        `${JSON.stringify(name)} may be "interactive" or "plan" on a server where others are, too`,
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
      'attachments other than "blob" would be read from the disk of a server where others are, too',
    );
  }
}

/** All that stands under the key `attachments`, however deep. */
function attachmentsIn(value: unknown): unknown[] {
  if (Array.isArray(value)) return value.flatMap(attachmentsIn);
  if (typeof value !== "object" || value === null) return [];
  return Object.entries(value).flatMap(([key, inner]) =>
    key === "attachments" && Array.isArray(inner) ? inner : attachmentsIn(inner),
  );
}

/** A permission request, and what the client that answers it has to do with it. */
export interface Permission {
  /** What was asked; undefined: nobody here heard of it. */
  asked: SessionRequest | undefined;
  /** Whether it is about a tool that this client brought. */
  isOwnTool: boolean;
  /** Whether the session is its owner's and its members'. */
  isCollaborative: boolean;
}

/**
 * The parameters of a permission decision that a server gets. Where the client's word does not count, an approval counts for
 * the client's own tools alone, which run in the client.
 *
 * @returns null for a tool of another client, which that one decides on
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

/**
 * What a server gets of a client's answer to a hook, by which a hook could approve a tool in place of whoever is asked.
 *
 * @param result what the client answered
 */
export function withoutApproval(result: unknown): unknown {
  if (Array.isArray(result)) return result.map(withoutApproval);
  if (typeof result !== "object" || result === null) return result;
  const kept = Object.entries(result).filter(([key, value]) => key !== "permissionDecision" || RESTRICTING.has(value));
  return Object.fromEntries(kept.map(([key, value]) => [key, key === "modifiedArgs" ? value : withoutApproval(value)]));
}

const RESTRICTING = new Set<unknown>(["deny", "ask"]);
