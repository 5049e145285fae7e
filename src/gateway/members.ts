import { BUILTIN_TOOLS } from "../config/tool-names.js";
import type { Params } from "./client-message.js";
import { methodDenied } from "./refusals.js";

/**
 * What a member of somebody else's session must not set: the session's instructions and the meaning of its tools are its
 * owner's, whose words and files go through them.
 */

const OWNERS_SETTINGS = ["systemMessage", "customAgents", "defaultAgent", "agent"];
/** An SDK's client in `mode: "empty"` sends this by itself (1.0.14, client.js, getSystemMessageConfigForMode). */
const MESSAGE_OF_EMPTY_MODE = { mode: "customize", sections: { environment_context: { action: "remove" } } };
const OWNERS_METHODS = new Set(["session.agent.setPrompt", "session.agent.select", "session.agent.deselect"]);

/**
 * @param params of a request by a member
 * @throws FleetError `FLEET_METHOD_DENIED`.
 */
export function checkMember(method: string, params: Params): void {
  if (OWNERS_METHODS.has(method)) throw methodDenied(method, "only the owner of a session instructs its agents");
  if (method !== "session.resume" && method !== "session.tools.set") return;
  const setting = OWNERS_SETTINGS.find((name) => {
    const value = params[name];
    // The program did not set it, and the server never gets it from a member.
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

/** The tools that a client brings by such a request. */
export function toolsIn({ tools }: Params): { name?: unknown; overridesBuiltInTool?: unknown }[] {
  return Array.isArray(tools) ? tools.map((tool: unknown) => (tool ?? {}) as object) : [];
}
