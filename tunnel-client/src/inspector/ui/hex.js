// @ts-check
// Bytes as a hex dump: offset, sixteen bytes, and the same as ASCII.

/** @param {string} base64 */
export function hexDump(base64) {
  const bytes = atob(base64);
  const lines = [];
  for (let offset = 0; offset < bytes.length; offset += 16) {
    let hex = '';
    let ascii = '';
    for (let at = offset; at < offset + 16; at += 1) {
      if (at % 8 === 0) hex += ' ';
      const byte = at < bytes.length ? bytes.charCodeAt(at) : -1;
      hex += byte < 0 ? '   ' : ` ${byte.toString(16).padStart(2, '0')}`;
      ascii += byte < 0 ? '' : byte >= 32 && byte < 127 ? bytes[at] : '.';
    }
    lines.push(`${offset.toString(16).padStart(6, '0')}${hex}  ${ascii}`);
  }
  return lines.join('\n');
}
