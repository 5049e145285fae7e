import { BUILTIN_TOOLS } from "../../config/values/tool-names.js";
import type { Params } from "../wire/client-message.js";
import { methodDenied } from "../wire/refusals.js";
import { changesLimit } from "./credits.js";

/*
 * A member must neither set the instructions of the owner's session nor replace its tools. Otherwise the member could
 * decide what the agent does with the owner's prompts. A member must not show dialogs to the owner either, nor write to
 * the log, because the owner would take them for the agent's.
 */

const OWNERS_SETTINGS = ["systemMessage", "customAgents", "defaultAgent", "agent"];
/** In `mode: "empty"`, the SDK itself sends this as `systemMessage` (1.0.14, getSystemMessageConfigForMode in client.js). */
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
