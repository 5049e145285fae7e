import { dirname, normalize } from "node:path";
import type { PermissionHandler } from "@github/copilot-sdk";

export type PermissionRequest = Parameters<PermissionHandler>[0];

/** A permission request in words for the user. */
export interface Described {
  question: string;
  /** The text that the user should read before the answer, such as the command. */
  body: string;
  /** Reasons and warnings. */
  notes: string[];
  /** The requests that a "yes" for the rest of the session covers; null if the user must answer each request. */
  scope: Scope | null;
}

export interface Scope {
  /** The chat does not ask about a request if the user has already allowed all of its keys. */
  keys: string[];
  label: string;
}

export function describe(request: PermissionRequest): Described {
  const described = describeKind(request);
  const bypass = "requestSandboxBypass" in request && request.requestSandboxBypass === true;
  const managed = request.managedApprovalRequired === true;
  const reason = "requestSandboxBypassReason" in request ? request.requestSandboxBypassReason : undefined;
  const notes = bypass ? [`It asks to act outside of the sandbox. ${reason ?? ""}`.trim()] : [];
  return {
    ...described,
    notes: [...notes, ...described.notes].filter((note) => note !== ""),
    scope: bypass || managed ? null : described.scope,
  };
}

function describeKind(request: PermissionRequest): Described {
  switch (request.kind) {
    case "shell": {
      const { fullCommandText: body, intention, warning = "" } = request;
      return { question: "Run this command?", body, notes: [warning, intention], scope: scopeOfShell(request) };
    }
    case "write": {
      const { fileName, intention, diff, newFileContents, canOfferSessionApproval } = request;
      const body = diff === "" ? (newFileContents ?? "") : diff;
      const scope = canOfferSessionApproval ? { keys: ["write"], label: "changes of files" } : null;
      return { question: `Write to the file ${fileName}?`, body, notes: [intention], scope };
    }
    case "read": {
      const { path, intention } = request;
      return {
        question: `Read ${path}?`,
        body: "",
        notes: [intention],
        scope: scopeOfRead(path),
      };
    }
    case "mcp": {
      const { serverName, toolName, args } = request;
      const name = `${serverName}/${toolName}`;
      return { question: `Call the tool ${name}?`, body: asText(args), notes: [], scope: scopeOf("mcp", name) };
    }
    case "custom-tool": {
      const { toolName, args } = request;
      return {
        question: `Call the tool ${toolName}?`,
        body: asText(args),
        notes: [],
        scope: scopeOf("tool", toolName),
      };
    }
    case "url": {
      const { url, intention, redirectedFrom } = request;
      const from = redirectedFrom === undefined ? "" : `Redirected from ${redirectedFrom}`;
      const host = URL.canParse(url) ? new URL(url).host : url;
      return { question: "Fetch this address?", body: url, notes: [intention, from], scope: scopeOf("url", host) };
    }
    case "memory":
      return { question: "Remember this?", body: request.fact, notes: [request.reason ?? ""], scope: null };
    case "hook": {
      const { toolName, toolArgs, hookMessage = "" } = request;
      return { question: `Call the tool ${toolName}?`, body: asText(toolArgs), notes: [hookMessage], scope: null };
    }
    default:
      return { question: "Allow this?", body: asText(request), notes: [], scope: null };
  }
}

type Shell = Extract<PermissionRequest, { kind: "shell" }>;

/**
 * Returns what a "yes" for the rest of the session covers: all commands that run the same programs. If the runtime does
 * not offer this for the command, or if the command redirects output to a file, it covers exactly this command.
 */
function scopeOfShell(request: Shell): Scope {
  const { canOfferSessionApproval, commands, fullCommandText, hasWriteFileRedirection } = request;
  if (!canOfferSessionApproval || hasWriteFileRedirection || commands.length === 0) {
    return { keys: [`command ${fullCommandText}`], label: "exactly this command" };
  }
  const names = [...new Set(commands.map(({ identifier }) => identifier))];
  return { keys: names.map((name) => `program ${name}`), label: `commands of: ${names.join(", ")}` };
}

function scopeOfRead(path: string): Scope {
  const folder = dirname(normalize(path));
  return { keys: [`read ${folder}`], label: `reading files directly in ${folder}` };
}

function scopeOf(kind: string, name: string): Scope {
  return { keys: [`${kind} ${name}`], label: name };
}

function asText(value: unknown): string {
  if (value === undefined) return "";
  return typeof value === "string" ? value : JSON.stringify(value, null, 2);
}
