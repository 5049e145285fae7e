/** A command of the screencast, and the lines that it prints. */
export interface Step {
  command: string;
  output: readonly string[];
}

interface Line {
  text: string;
  /** When the line appears, in seconds after the beginning. */
  at: number;
  isCommand: boolean;
}

const COLUMN_WIDTH = 8.43;
const LINE_HEIGHT = 20;
const PADDING = 16;
/** How long a person looks at an output before the next command, in seconds. */
const PAUSE_S = 1.8;
/** How long a command seems to take, in seconds. */
const RUN_S = 0.6;

/** Draws the steps as an SVG picture whose lines appear one after another, and stay. */
export function renderScreencast(steps: readonly Step[]): string {
  const lines = timed(steps);
  const width = Math.ceil(Math.max(...lines.map(({ text }) => text.length)) * COLUMN_WIDTH + 2 * PADDING);
  const height = lines.length * LINE_HEIGHT + 2 * PADDING;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" role="img">`,
    "<title>A conversation that survives the end of its server</title>",
    "<style>",
    "text { font: 14px ui-monospace, Menlo, Consolas, monospace; fill: #d7dae0; white-space: pre; }",
    "text { opacity: 0; animation: appear 0.01s linear forwards; }",
    ".command { fill: #8be9a8; }",
    "@keyframes appear { to { opacity: 1; } }",
    "@media (prefers-reduced-motion: reduce) { text { opacity: 1; animation: none; } }",
    "</style>",
    `<rect width="${width}" height="${height}" rx="8" fill="#1e2127"/>`,
    ...lines.map(({ text, at, isCommand }, index) => {
      const y = PADDING + (index + 0.75) * LINE_HEIGHT;
      const style = `style="animation-delay: ${at.toFixed(1)}s"`;
      return `<text x="${PADDING}" y="${y}"${isCommand ? ' class="command"' : ""} ${style}>${escaped(text)}</text>`;
    }),
    "</svg>\n",
  ].join("\n");
}

function timed(steps: readonly Step[]): Line[] {
  let at = 0.5;
  return steps.flatMap(({ command, output }, index) => {
    const lines = [
      ...(index === 0 ? [] : [{ text: "", at, isCommand: false }]),
      { text: `$ ${command}`, at, isCommand: true },
      ...output.map((text) => ({ text, at: at + RUN_S, isCommand: false })),
    ];
    at += RUN_S + PAUSE_S;
    return lines;
  });
}

function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}
