/**
 * The tools that `session.tools.getBuiltinDescriptors` of runtime 1.0.85 lists (a test compares them), and `write_bash`
 * of other versions.
 */
export const BUILTIN_TOOLS: ReadonlySet<string> = new Set(
  `apply_patch ask_user bash context_board create create_pull_request edit exit_plan_mode factories_manage
  fetch_copilot_cli_documentation generic_tool_search glob grep list_agents list_bash manage_schedule read_agent read_bash
  read_inbox reply_to_comment run_factory send_inbox skill sql stop_bash str_replace_editor task task_complete
  tool_search_tool update_todo view web_fetch write_agent write_bash`.split(/\s+/),
);

/** Tools that do not reach files, programs or the network, and do not start an agent that could. */
const HARMLESS = new Set(
  "ask_user exit_plan_mode fetch_copilot_cli_documentation generic_tool_search task_complete tool_search_tool update_todo".split(
    " ",
  ),
);

/**
 * Whether a tool with this name may let the model reach the server's files or programs. Custom tools run at the client.
 */
export function reachesFiles(pattern: string): boolean {
  return !pattern.startsWith("custom:") && !HARMLESS.has(pattern.replace(/^builtin:/, ""));
}
