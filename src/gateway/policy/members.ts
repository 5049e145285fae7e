import { BUILTIN_TOOLS } from "../../config/values/tool-names.js";
import type { Params } from "../wire/client-message.js";
import { methodDenied } from "../wire/refusals.js";

/**
 * A member must not set the instructions of the owner's session, nor change the meaning of its tools, because the owner's
 * words and files pass through them.
 */

const OWNERS_SETTINGS = ["systemMessage", "customAgents", "defaultAgent", "agent"];
/** The SDK's client sends this by itself in `mode: "empty"` (1.0.14, client.js, getSystemMessageConfigForMode). */
const MESSAGE_OF_EMPTY_MODE = { mode: "customize", sections: { environment_context: { action: "remove" } } };
const OWNERS_METHODS = new Set(["session.agent.setPrompt", "session.agent.select", "session.agent.deselect"]);

/** Refuses a request from a member that only the owner may make. */
export function checkMember(method: string, params: Params): void {
  if (OWNERS_METHODS.has(method)) throw methodDenied(method, "only the owner of a session instructs its agents");
  if (method !== "session.resume" && method !== "session.tools.set") return;
  const setting = OWNERS_SETTINGS.find((name) => {
    const value = params[name];
    // The SDK added this value by itself, so do not refuse it. The front door removes it before the server gets the
    // request.
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
