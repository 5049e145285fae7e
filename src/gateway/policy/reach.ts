import { isIP } from "node:net";
import type { Config } from "../../config/schema.js";
import { isObject } from "../../config/values/json.js";
import { redactTokens } from "../../config/values/text.js";
import { quote } from "../../errors.js";
import type { ServerRecord } from "../../model/server.js";
import { type Reach, reachesHost } from "../../pool/host-reach.js";
import { isBlocked } from "../../sandbox/network/addresses.js";
import type { ClientRequest, Params } from "../wire/client-message.js";
import { approvalDenied, hostDenied, methodDenied } from "../wire/refusals.js";
import type { Handling } from "./methods.js";

/*
 * Some parameters of allowed methods reach beyond the conversation: to the disk and the programs of the server's machine,
 * or to tools that the user did not approve. The functions here refuse such parameters.
 */

/** Collects the facts that {@link reachesHost} and {@link checkReach} need about a client's link to a server. */
export function reachOf(
  { own, server }: { own: boolean; server: Pick<ServerRecord, "sandbox"> },
  config: Config,
): Reach {
  return { own, config, sandbox: server.sandbox };
}

/** Whether the client may approve tools other than those that it provides itself. */
export function decidesOnTools({ own, config: { session } }: Pick<Reach, "own" | "config">): boolean {
  return session.approve === "all" || (own && session.approve === "ask");
}

/** The modes in which the runtime asks the user before a tool does anything. */
const ASKING_MODES = ["interactive", "plan"];

/**
 * Refuses what the configuration does not allow on this server: methods that use the server's machine or approve tools,
 * attachments that the server would read from its disk, and modes in which the runtime does not ask the user.
 */
export function checkReach(
  { method, params }: Pick<ClientRequest, "method" | "params">,
  { host, approves }: Pick<Handling, "host" | "approves">,
  reach: Reach,
): void {
  const isFree = reachesHost(reach);
  if (host === true && !isFree) throw hostDenied(method, "it reaches files or programs");
  if (!isFree) {
    refuseFiles(method, params, reach);
    refuseInnerProviders(method, params);
  }
  if (decidesOnTools(reach)) return;
  if (approves === true) throw approvalDenied(method);
  // On a user's own server the mode does not change approvals (measured with 1.0.85).
  if (reach.own) return;
  for (const name of ["mode", "agentMode"] as const) {
    const mode = params[name];
    const isMode = name === "agentMode" || method === "session.mode.set";
    if (isMode && mode !== undefined && mode !== null && !ASKING_MODES.includes(String(mode))) {
      const rule = 'must be "interactive" or "plan" on a server that other users share';
      throw methodDenied(method, `${JSON.stringify(name)} ${rule}`);
    }
  }
}

function refuseFiles(method: string, params: Params, { own }: Reach): void {
  for (const attachment of attachmentsIn(params)) {
    if (isObject(attachment) && attachment.type === "blob") continue;
    if (own) throw hostDenied(method, 'an attachment other than "blob" is read from the disk');
    const why = 'attachments other than "blob" would be read from the disk of a server that other users share';
    throw methodDenied(method, why);
  }
}

/**
 * Refuses a client's own model provider on this machine or in a private network, because the server sends requests there
 * and gives the client the answers. Does not look up names, because a name may lead elsewhere a moment later, and a public
 * service may redirect. `sandbox.network` prevents both.
 */
export function refuseInnerProviders(method: string, { provider, providers }: Params): void {
  const several = Array.isArray(providers) ? providers : [providers];
  for (const [name, given] of [
    ["provider", provider],
    ...several.map((item, index) => [`providers[${index}]`, item] as const),
  ] as const) {
    const baseUrl = isObject(given) ? given.baseUrl : undefined;
    if (given === undefined || given === null || isPublicUrl(baseUrl)) continue;
    const shown = quote(typeof baseUrl === "string" ? redactTokens(baseUrl) : baseUrl);
    const why = `"${name}.baseUrl" (${shown}) is not an HTTP or HTTPS URL with a public host`;
    throw hostDenied(method, why);
  }
}

function isPublicUrl(text: unknown): boolean {
  if (typeof text !== "string" || !URL.canParse(text)) return false;
  const { protocol, hostname } = new URL(text);
  if (protocol !== "http:" && protocol !== "https:") return false;
  const host = hostname.replace(/^\[|\]$|\.$/g, "");
  if (isIP(host) !== 0) return !isBlocked(host);
  // A name without a dot depends on the search list of the machine.
  return host.includes(".") && !/\.(localhost|local|internal)$/.test(host);
}

function attachmentsIn(value: unknown): unknown[] {
  if (Array.isArray(value)) return value.flatMap(attachmentsIn);
  if (!isObject(value)) return [];
  return Object.entries(value).flatMap(([key, inner]) =>
    key === "attachments" && Array.isArray(inner) ? inner : attachmentsIn(inner),
  );
}

/**
 * A question that a server sends, as an event, to the clients of one session. An answer names the question's
 * `requestId`.
 */
export interface ServerQuestion {
  kind: string | undefined;
  /** The name of the tool, if the question is about a client's tool. */
  tool: string | undefined;
}

/** A server's permission request, and its relation to the client that answers it. */
export interface Permission {
  /** Undefined if this front door did not see the request, for example because it started later. */
  asked: ServerQuestion | undefined;
  /** Whether the request is about a tool that this client brought. */
  isOwnTool: boolean;
  isCollaborative: boolean;
}

/**
 * The parameters that the server gets for a client's answer to a permission request. A client that may not approve tools may
 * still approve its own tools, because those run in the client. Any other approval becomes a refusal.
 *
 * @returns the parameters; null if the request is about another client's tool, because only that client may answer
 */
export function decide(
  params: Params,
  { asked, isOwnTool, isCollaborative }: Permission,
  reach: Pick<Reach, "own" | "config">,
): Params | null {
  const { kind: decision } = (params.result ?? {}) as { kind?: unknown };
  const decides = decidesOnTools(reach);
  if (asked?.kind === "custom-tool" && !isOwnTool && (isCollaborative || !decides)) return null;
  if (decides) return params;
  if (decision === "reject" || decision === "user-not-available") return params;
  if (decision === "approve-once" && asked?.kind === "custom-tool") return params;
  const feedback = `Tools are not allowed here (session.approve is ${JSON.stringify(reach.config.session.approve)}).`;
  return { sessionId: params.sessionId, requestId: params.requestId, result: { kind: "reject", feedback } };
}

/** Whether an answer to a permission request approves more than one tool call. */
export function approvesMore({ result }: Params): boolean {
  const { kind } = (result ?? {}) as { kind?: unknown };
  return !["approve-once", "approved", "reject", "user-not-available", "no-result"].includes(String(kind));
}

/**
 * Removes approvals from a client's answer to a hook, so that a client that may not approve tools cannot do so in this
 * way.
 */
export function withoutApproval(result: unknown): unknown {
  if (Array.isArray(result)) return result.map(withoutApproval);
  if (!isObject(result)) return result;
  const kept = Object.entries(result).filter(([key, value]) => key !== "permissionDecision" || RESTRICTING.has(value));
  return Object.fromEntries(kept.map(([key, value]) => [key, key === "modifiedArgs" ? value : withoutApproval(value)]));
}

/** The decisions of a hook that restrict a tool. */
const RESTRICTING = new Set<unknown>(["deny", "ask"]);
