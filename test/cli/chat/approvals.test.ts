import { describe, expect, it } from "vitest";
import { describe as describeRequest, type PermissionRequest } from "../../../src/cli/chat/answers.js";

const shell = {
  kind: "shell",
  fullCommandText: "git status && ls",
  intention: "looks around",
  commands: [
    { identifier: "git status", readOnly: true },
    { identifier: "ls", readOnly: true },
  ],
  canOfferSessionApproval: true,
  hasWriteFileRedirection: false,
  possiblePaths: [],
  possibleUrls: [],
} satisfies PermissionRequest;

describe("the description of a permission request", () => {
  it.each<[string, PermissionRequest, string | null]>([
    ["the programs that a command runs", shell, "commands of: git status, ls"],
    [
      "only this command, if the runtime offers no approval for its programs",
      { ...shell, canOfferSessionApproval: false },
      "exactly this command",
    ],
    ["nothing, if managed settings require an answer each time", { ...shell, managedApprovalRequired: true }, null],
    ["nothing, if the command would leave the sandbox", { ...shell, requestSandboxBypass: true }, null],
    [
      "only this command, if it redirects output to a file",
      { ...shell, hasWriteFileRedirection: true },
      "exactly this command",
    ],
    [
      "the folder of a file",
      { kind: "read", path: "/etc/ssh/../hosts", intention: "" },
      "reading files directly in /etc",
    ],
    ["the host of an address", { kind: "url", url: "https://a.example/x", intention: "" }, "a.example"],
    [
      "the tool of an MCP server",
      { kind: "mcp", serverName: "s", toolName: "t", toolTitle: "T", readOnly: false },
      "s/t",
    ],
    ["nothing, if a hook asks", { kind: "hook", toolName: "bash" }, null],
    ["nothing for a fact to remember", { kind: "memory", fact: "f" }, null],
  ])("an approval for the whole session covers %s", (_, request, label) => {
    expect(describeRequest(request).scope?.label ?? null).toBe(label);
  });

  it("the description of a command that would leave the sandbox gives the model's reason as a warning", () => {
    const request = { ...shell, requestSandboxBypass: true, requestSandboxBypassReason: "It needs the network." };
    expect(describeRequest(request).notes).toContain("It asks to act outside of the sandbox. It needs the network.");
  });

  it("an approval for reading a file covers all files in its folder, but none in another folder", () => {
    const keys = (path: string) => describeRequest({ kind: "read", path, intention: "" }).scope?.keys;
    expect(keys("/etc/hosts")).toEqual(keys("/etc/passwd"));
    expect(keys("/etc/hosts")).not.toEqual(keys("/etc/ssh/key"));
  });

  it("an approval for a command has one key for each program that the command runs", () => {
    const keys = (request: PermissionRequest) => describeRequest(request).scope?.keys;
    expect(keys({ ...shell, commands: [{ identifier: "git push", readOnly: false }] })).toEqual(["program git push"]);
    expect(keys(shell)).toEqual(["program git status", "program ls"]);
  });
});
