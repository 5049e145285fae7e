import { isIP } from "node:net";
import { quote } from "../../base/errors.js";
import type { ServerRecord } from "../../base/server.js";
import { type CreditConfig, creditLimit, isWithin } from "../../base/usage.js";
import { BUILTIN_TOOLS } from "../../base/values/names.js";
import { isObject, redactTokens } from "../../base/values/text.js";
import type { Config } from "../../config/schema.js";
import { isBlocked } from "../../sandbox/network/addresses.js";
import { type Reach, reachesHost } from "../../servers/admission.js";
import type { ClientRequest, Params } from "../wire/client-message.js";
import { approvalDenied, hostDenied, methodDenied } from "../wire/refusals.js";
import type { Handling } from "./methods.js";

/*
 * Some parameters of allowed methods reach beyond the conversation: to the disk and the programs of the server's
 * machine, or to tools that the user did not approve. The functions here refuse such parameters.
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
 * Refuses a client's own model provider on this machine or in a private network, because the server sends requests
 * there and gives the client the answers. Does not look up names, because a name may lead elsewhere a moment later, and
 * a public service may redirect. `sandbox.network` prevents both.
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
interface Permission {
  /** Undefined if this front door did not see the request, for example because it started later. */
  asked: ServerQuestion | undefined;
  /** Whether the request is about a tool that this client brought. */
  isOwnTool: boolean;
  isCollaborative: boolean;
}

/**
 * The parameters that the server gets for a client's answer to a permission request. A client that may not approve
 * tools may still approve its own tools, because those run in the client. Any other approval becomes a refusal.
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

/*
 * A member must neither set the instructions of the owner's session nor replace its tools. Otherwise the member could
 * decide what the agent does with the owner's prompts. A member must not show dialogs to the owner either, nor write to
 * the log, because the owner would take them for the agent's.
 */

const OWNERS_SETTINGS = ["systemMessage", "customAgents", "defaultAgent", "agent"];
/**
 * In `mode: "empty"`, the SDK itself sends this as `systemMessage` (1.0.14, getSystemMessageConfigForMode in
 * client.js).
 */
const MESSAGE_OF_EMPTY_MODE = { mode: "customize", sections: { environment_context: { action: "remove" } } };
const OWNERS_METHODS = new Set(
  `session.agent.setPrompt session.agent.select session.agent.deselect session.ui.elicitation session.log
  session.model.switchTo session.model.switchAutoTier session.model.setReasoningEffort session.mode.set session.name.set
  session.name.setAuto session.plan.update session.plan.delete session.metadata.updateClientMetadata`.split(/\s+/),
);

/** Refuses a member's request that only the owner may make. */
export function checkMember(method: string, params: Params): void {
  if (OWNERS_METHODS.has(method)) throw methodDenied(method, "only the owner of a session may use it");
  if (changesLimit(method, params)) throw methodDenied(method, "only the owner of a session sets its limits");
  if (method !== "session.resume" && method !== "session.tools.set") return;
  const setting = OWNERS_SETTINGS.find((name) => {
    const value = params[name];
    // The member did not choose this value, so do not refuse it. `settings.ts` removes it from the request.
    if (name === "systemMessage" && JSON.stringify(value) === JSON.stringify(MESSAGE_OF_EMPTY_MODE)) return false;
    return value !== undefined && value !== null;
  });
  if (setting !== undefined) throw methodDenied(method, `only the owner of a session sets ${JSON.stringify(setting)}`);
  for (const tool of toolsIn(params)) {
    const { name, overridesBuiltInTool } = tool;
    if (overridesBuiltInTool !== true && !BUILTIN_TOOLS.has(String(name))) continue;
    throw methodDenied(method, `the tool ${JSON.stringify(name)} would take the place of a built-in one`);
  }
}

export function toolsIn({ tools }: Params): { name?: unknown; overridesBuiltInTool?: unknown }[] {
  return Array.isArray(tools) ? tools.map((tool: unknown) => (tool ?? {}) as object) : [];
}

/**
 * Methods that ask the model outside a turn. The runtime counts these model requests in the session's AI credits
 * (1.0.85).
 */
const ASKING = new Set(
  `session.history.compact session.mcp.executeSampling session.fleet.start session.tasks.startAgent
  session.tasks.sendMessage session.commands.invoke session.commands.enqueue session.commands.execute
  session.factory.run session.factory.resume session.factory.agent session.workflow.run session.workflow.resume
  session.workflow.agent session.tools.execute session.sendSystemNotification`.split(/\s+/),
);

/**
 * Methods after which a session's count of AI credits is too low (1.0.85). Some make model requests that the runtime
 * does not count. The others shorten the history, and the runtime then no longer counts the credits of the removed
 * turns.
 */
const UNCOUNTED = new Set(
  `session.ui.ephemeralQuery session.history.summarizeForHandoff session.history.truncate session.history.rewind
  session.history.clearContext`.split(/\s+/),
);

/** Whether model requests may follow a method although no turn of the fleet runs. */
export function mayAskModel(method: string): boolean {
  return ASKING.has(method) || UNCOUNTED.has(method);
}

/** Whether a method asks the model outside a turn, so that the session must have AI credits left. */
export function asksModel(method: string): boolean {
  return ASKING.has(method);
}

/**
 * Refuses a request that would remove a session's credit limit, raise it above the fleet's limit, or bypass it. A
 * client can change the limit with the option `sessionLimits`, or with its answer when the runtime asks what to do at
 * the limit.
 */
export function checkCredits(method: string, asked: Params, config: CreditConfig): void {
  const most = creditLimit(config);
  if (most === null) return;
  const allowed = `a session may use ${most} AI credits (session.maxCredits)`;
  if (UNCOUNTED.has(method)) throw methodDenied(method, `${allowed}, and this method would make the count too low`);
  if (!keeps(method, asked, most)) throw methodDenied(method, `${allowed}, and a client can only lower that`);
}

function keeps(method: string, params: Params, most: number): boolean {
  const { sessionLimits, response } = params;
  if (method !== LIMIT_ANSWER) return sessionLimits === undefined || isWithin(sessionLimits, most);
  return !changesLimit(method, params) || (actionIn(params) === "set" && isWithin(response, most));
}

/** The method by which a client answers the runtime's question what to do when a session has used up its AI credits. */
const LIMIT_ANSWER = "session.ui.handlePendingSessionLimitsExhausted";

/** Whether a request is an answer by {@link LIMIT_ANSWER} that changes the limit. Every action but `cancel` does. */
function changesLimit(method: string, params: Params): boolean {
  return method === LIMIT_ANSWER && actionIn(params) !== "cancel";
}

function actionIn({ response }: Params): unknown {
  return (response as { action?: unknown } | null | undefined)?.action;
}
