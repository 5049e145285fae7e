import type { ToolSandbox } from "../../sandbox/tool-sandbox.js";
import type { Params } from "../wire/client-message.js";
import { methodDenied } from "../wire/refusals.js";

/**
 * If the fleet has set the sandbox for the tools of a session, refuses a request that would change it. This includes
 * `sandboxConfig: null`, because the runtime then turns the sandbox off (measured with 1.0.85).
 */
export function checkToolSandbox(method: string, asked: Params, toolSandbox: ToolSandbox | null): void {
  if (toolSandbox === null) return;
  if (method !== "session.sandbox.disableForSession" && !("sandboxConfig" in asked)) return;
  throw methodDenied(method, 'the sandbox of the tools ("sandboxConfig") is set by the fleet (sandbox.tools)');
}
