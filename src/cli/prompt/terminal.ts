import { usage } from "../flags/flags.js";

/** Whether a person can chat here: standard input and output are a terminal that can move its cursor. */
export function canChat(): boolean {
  return process.stdin.isTTY === true && process.stdout.isTTY === true && process.env.TERM !== "dumb";
}

/** @throws FleetError when a chat is not possible. */
export function assertCanChat(isJson: boolean, sessionId: string | undefined, user: string | undefined): void {
  if (canChat() && !isJson) return;
  throw usage(`A chat ${isJson ? "has no JSON output" : "needs a terminal"}.`, [
    `copilotfleet send ${sessionId ?? "SESSION"} TEXT --user ${user ?? "USER"}${isJson ? " --json" : ""}`,
  ]);
}
