import type { ToolSandbox } from "../../sandbox/tool-sandbox.js";
import type { Params } from "../wire/client-message.js";
import { methodDenied } from "../wire/refusals.js";

/**
 * Refuses a request that would change the sandbox of the tools in a session, if the fleet has set it. The value null, too,
 * because the runtime then turns that sandbox off (measured with 1.0.85).
 */
export function checkToolSandbox(method: string, asked: Params, toolSandbox: ToolSandbox | null): void {
  if (toolSandbox === null) return;
  if (method !== "session.sandbox.disableForSession" && !("sandboxConfig" in asked)) return;
  throw methodDenied(method, 'the sandbox of the tools ("sandboxConfig") is set by the fleet (sandbox.tools)');
}
