import type { Config } from "../../config/schema.js";

/**
 * The calls of `session.permissions` that take back all approvals that last longer than one tool call: the mode, rules from
 * the host, and rules of the session and its folder. None of them takes back all three (measured with 1.0.85).
 */
const FORGET = {
  setMode: { mode: "manual" },
  configure: { approveAllToolPermissionRequests: false, rules: { approved: [], denied: [] } },
  resetSessionApprovals: {},
} as const;

/**
 * Makes the runtime ask again about each tool call of the next turn, if `session.approve` is `ask`. An approved command can
 * learn the token of its own server, connect to it, and approve everything that follows.
 *
 * @param call calls a method of `session.permissions`
 */
export async function forgetApprovals(
  { session: { approve } }: Pick<Config, "session">,
  call: (name: keyof typeof FORGET | "setAllowAll", params: object) => Promise<unknown>,
): Promise<void> {
  if (approve !== "ask") return;
  const names = Object.keys(FORGET) as (keyof typeof FORGET)[];
  const calls = names.map(async (name) => {
    await call(name, FORGET[name]).catch(async (error: unknown) => {
      // Older runtimes have another method for the mode (measured with 1.0.81-0).
      if (name !== "setMode" || !/Unhandled method/.test(String(error))) throw error;
      await call("setAllowAll", { enabled: false });
    });
  });
  await Promise.all(calls);
}
