import type { Config } from "../config/schema.js";
import { FleetError } from "../errors.js";
import { NO_SANDBOX } from "../model/sandbox.js";
import type { ServerRecord } from "../model/server.js";
import { run } from "./landlock.js";

/*
 * The runtime can run each tool of an agent in a separate sandbox, which the runtime makes with bwrap (bubblewrap). The
 * `sandboxConfig` of a session has the settings of that sandbox. It covers built-in tools, MCP servers and language
 * servers, but not `session.shell.exec`. It cannot work inside our own sandbox: Landlock forbids mounts, so every
 * command of the agent would fail. All of this was measured with runtime 1.0.85.
 */

/** The `sandboxConfig` of a session, for the runtime. */
export interface ToolSandbox {
  enabled: true;
  addCurrentWorkingDirectory: false;
  allowBypass: false;
  sandboxMcpServers: true;
  sandboxLspServers: true;
  userPolicy: {
    filesystem: { readwritePaths: string[] };
    network: { allowOutbound: false; allowLocalNetwork: false };
  };
}

/** The sandbox of the tools in each session on a server; null if the configuration asks for none. */
export function toolSandboxOf(
  { sandbox }: Pick<Config, "sandbox">,
  server: Pick<ServerRecord, "sandbox" | "home" | "cwd">,
): ToolSandbox | null {
  // A server that started with an earlier configuration may have a sandbox. The tools' sandbox cannot work inside it.
  if (sandbox.tools === "none" || (server.sandbox ?? NO_SANDBOX).mode !== "none") return null;
  return {
    enabled: true,
    // A client may choose the working folder of a session, such as "/". So grant only folders that the fleet chose.
    addCurrentWorkingDirectory: false,
    allowBypass: false,
    sandboxMcpServers: true,
    sandboxLspServers: true,
    userPolicy: {
      filesystem: { readwritePaths: [...new Set([server.home, server.cwd])] },
      // Allow no network: for a network, the runtime would also need slirp4netns, which needs /dev/net/tun.
      network: { allowOutbound: false, allowLocalNetwork: false },
    },
  };
}

/** @throws FLEET_SANDBOX_UNUSABLE if the configuration asks for a sandbox of the tools, and bwrap does not work here */
export async function assertToolSandbox({ tools }: Config["sandbox"], env: NodeJS.ProcessEnv): Promise<void> {
  const failure = tools === "none" ? null : await failureOfBwrap(env);
  if (failure === null) return;
  throw new FleetError("FLEET_SANDBOX_UNUSABLE", `sandbox.tools is "bwrap", but bwrap failed (${failure}).`, {
    suggestions: ["copilotfleet doctor", 'Set sandbox.tools to "none", or sandbox.mode to "auto".'],
  });
}

/** Why bwrap does not work on this machine. Null if it works. */
export async function failureOfBwrap({ PATH }: NodeJS.ProcessEnv): Promise<string | null> {
  const args = ["--unshare-user", "--unshare-pid", "--unshare-net", "--ro-bind", "/", "/", "true"];
  return (await run("bwrap", args, { PATH })).failure;
}
