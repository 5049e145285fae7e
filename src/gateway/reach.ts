import type { Config } from "../config/schema.js";
import type { Params } from "./client-message.js";
import { methodDenied } from "./refusals.js";

/**
 * What a client may not say on a server where others are, too, in a request that is otherwise its own affair: these reach
 * past the conversation all the same.
 */

/** The modes in which the user is asked before a tool does anything. */
const ASKING_MODES = ["interactive", "plan"];

/**
 * Refuses attachments that the server would read from its own disk, and modes in which nobody is asked.
 *
 * @throws FleetError `FLEET_METHOD_DENIED`.
 */
export function checkReach(method: string, params: Params, { session }: Config): void {
  for (const attachment of attachmentsIn(params)) {
    if (typeof attachment === "object" && attachment !== null && "type" in attachment && attachment.type === "blob")
      continue;
    throw methodDenied(
      method,
      'attachments other than "blob" would be read from the disk of a server where others are, too',
    );
  }
  if (session.approve === "all") return;
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

/** All that stands under the key `attachments`, however deep. */
function attachmentsIn(value: unknown): unknown[] {
  if (Array.isArray(value)) return value.flatMap(attachmentsIn);
  if (typeof value !== "object" || value === null) return [];
  return Object.entries(value).flatMap(([key, inner]) =>
    key === "attachments" && Array.isArray(inner) ? inner : attachmentsIn(inner),
  );
}

/**
 * The parameters of a permission decision that a server gets. Who may decide on a tool is whose server it runs on; elsewhere
 * approval counts only for the client's own tools, which run in the client, unless the fleet approves of all.
 *
 * @param kinds the kinds of what was asked, by the ids of the requests
 */
export function decide(params: Params, kinds: Map<string, string> | undefined, { session }: Config): Params {
  const { kind: decision } = (params.result ?? {}) as { kind?: unknown };
  if (session.approve === "all" || decision === "reject" || decision === "user-not-available") return params;
  if (decision === "approve-once" && kinds?.get(String(params.requestId)) === "custom-tool") return params;
  const feedback = 'Tools are not allowed here (session.approve is "none").';
  return { sessionId: params.sessionId, requestId: params.requestId, result: { kind: "reject", feedback } };
}
